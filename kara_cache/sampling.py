"""Which row comes when: shuffled orders that can be entered anywhere, and each rank's part of them.

An epoch is a sequence of positions 0, 1, 2, ... Position p holds row `RowOrder.rows_at([p])`, whatever the
number of ranks and loader workers is. Ranks take turns: with `count` ranks, the one with index i takes the
positions start + i, start + i + count, ... Who knows where an epoch stopped (a `Bookmark`) can therefore go
on from there with any number of ranks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any, Literal, get_args

Remainder = Literal["keep", "pad", "drop"]
"""What becomes of the rows that are left when ranks do not divide an epoch: some ranks have one more
("keep"), all have as many because the first rows come again ("pad"), or the last are left out ("drop")."""

MAX_ROWS = 1 << 63
MAX_SEED = (1 << 63) - 1  # what a tensor that workers share can hold

# Black and Rogaway ("Ciphers with Arbitrary Finite Domains", CT-RSA 2002): a Feistel network over a x b >= n
# instead of bits, and its outputs beyond n are encrypted again ("cycle-walking"). With a and b next to the
# root of n that happens to fewer than 2 / sqrt(n) of them. The number of rounds is that of Mitchell, Stokes,
# Frank and Holmes ("Bandwidth-Optimal Random Shuffling for GPUs", ACM TOPC 9(1), 2022), whose tests of
# uniformity tests/unit/test_sampling.py repeats: 8 rounds fail them at n = 5, 16 pass.
ROUNDS = 24
_MIX = 0xD6E8FEB86659FD93  # multiplier of Evensen's "rrmxmx" family of 64-bit mixers; odd, half its bits set
_MASK = (1 << 64) - 1
_EXCHANGED = 4096  # rows of a pool at a time; 1024 and 16384 are no faster
_VECTOR_FROM = 16  # fewer positions than this are quicker without numpy; measured


class Permutation:
    """Numbers 0 to n - 1 in an order that `seed` and `epoch` choose. Constant memory; any position at once.

    The same everywhere: no library's random generator is in it. About 0.3 us per position in batches with
    numpy, 25 us without.
    """

    def __init__(self, n: int, seed: int, epoch: int = 0) -> None:
        if not 0 <= n <= MAX_ROWS:
            raise ValueError(f"n must be between 0 and 2**63, got {n}")
        if not (0 <= seed <= MAX_SEED and 0 <= epoch <= MAX_SEED):
            raise ValueError(f"seed and epoch must be between 0 and 2**63 - 1, got {seed=} and {epoch=}")
        self.n = n
        self._a = isqrt(n - 1) + 1 if n else 1
        self._b = -(-n // self._a) or 1
        digest = hashlib.shake_256(f"kara permutation 1: {n} {seed} {epoch}".encode()).digest(8 * ROUNDS)
        self._keys = [int.from_bytes(digest[at : at + 8], "little") for at in range(0, len(digest), 8)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.n:
            raise IndexError(f"position {position} of {self.n}")
        value = self._encrypt(position)
        while value >= self.n:
            value = self._encrypt(value)
        return value

    def take(self, positions: Sequence[int]) -> list[int]:
        """The numbers at these positions, in this order."""
        if len(positions) >= _VECTOR_FROM and _has_numpy():
            return self._take_vector(positions)
        return [self[position] for position in positions]

    def _encrypt(self, value: int) -> int:
        right, left = divmod(value, self._a)
        for at in range(0, ROUNDS, 2):
            left = (left + (_mix(right ^ self._keys[at]) * self._a >> 32)) % self._a
            right = (right + (_mix(left ^ self._keys[at + 1]) * self._b >> 32)) % self._b
        return left + self._a * right

    def _take_vector(self, positions: Sequence[int]) -> list[int]:
        import numpy as np

        if not 0 <= min(positions) <= max(positions) < self.n:
            raise IndexError(f"positions {min(positions)} to {max(positions)} of {self.n}")
        values = np.array(positions, dtype=np.uint64)
        values = self._encrypt_vector(values)
        while len(outside := np.flatnonzero(values >= np.uint64(self.n))):
            values[outside] = self._encrypt_vector(values[outside])
        return values.tolist()  # type: ignore[no-any-return]  # numpy is Any here

    def _encrypt_vector(self, values: Any) -> Any:
        """As `_encrypt`, of an array of uint64; its arithmetic is modulo 2**64."""
        import numpy as np

        a, b, half, multiplier = (np.uint64(number) for number in (self._a, self._b, 32, _MIX))

        def step(to: Any, key: int, radix: Any, other: Any) -> None:
            mixed = other ^ np.uint64(key)
            for _ in range(2):
                mixed ^= mixed >> half
                mixed *= multiplier
            mixed >>= half
            mixed *= radix
            mixed >>= half
            to += mixed
            np.subtract(to, radix, out=to, where=to >= radix)

        right, left = np.divmod(values, a)
        for at in range(0, ROUNDS, 2):
            step(left, self._keys[at], a, right)
            step(right, self._keys[at + 1], b, left)
        right *= a
        right += left
        return right


def _mix(value: int) -> int:
    for _ in range(2):
        value = (value ^ value >> 32) * _MIX & _MASK
    return value >> 32


@cache
def _has_numpy() -> bool:
    return importlib.util.find_spec("numpy") is not None


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of an epoch that one of `count` ranks reads."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"index must be below count, got {self.index} of {self.count}")

    def positions(self, rows: int, start: int = 0, remainder: Remainder = "keep") -> range:
        """Its positions of an epoch of `rows` that goes on at `start`. Those from `rows` on are padding."""
        return range(start + self.index, epoch_end(rows, start, self.count, remainder), self.count)


def epoch_end(rows: int, start: int, ranks: int, remainder: Remainder) -> int:
    """The position where an epoch ends that `ranks` ranks go on with at `start`; never before `start`."""
    left = max(0, rows - start)
    if remainder == "drop":
        return start + left // ranks * ranks
    if remainder == "pad":
        return start + -(-left // ranks) * ranks
    if remainder == "keep":
        return start + left
    raise ValueError(f"remainder must be one of {', '.join(get_args(Remainder))}, got {remainder!r}")


class RowOrder:
    """The row numbers of one epoch by position. Positions from `rows` on begin again with the first."""

    def __init__(self, rows: int, *, shuffle: bool, seed: int, epoch: int) -> None:
        self.rows = rows
        self._permutation = Permutation(rows, seed, epoch) if shuffle else None

    def rows_at(self, positions: Sequence[int]) -> list[int]:
        if positions and max(positions) >= self.rows:
            positions = [position % self.rows for position in positions]
        if self._permutation is None:
            return list(positions)
        return self._permutation.take(positions)


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Where in an epoch the ranks are, together: all positions before `position` are consumed."""

    rows: int
    seed: int
    shuffle: bool
    epoch: int
    position: int

    def to_dict(self) -> dict[str, Any]:
        """Less than 200 bytes as JSON."""
        return {
            "kara_rows": self.rows,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "position": self.position,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Bookmark:
        """Raises ValueError where `state` is not what `to_dict` returned."""
        numbers = [state.get(key) for key in ("kara_rows", "seed", "epoch", "position")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"not the state of a row stream or loader: {dict(state)!r}")
        return cls(state["kara_rows"], state["seed"], bool(state.get("shuffle")), *numbers[2:])  # type: ignore[arg-type]  # checked above


def worker_batches(positions: range, batch_size: int, worker: int, workers: int) -> Iterator[range]:
    """The batches that one of a loader's workers makes, when workers take turns, as DataLoader's do."""
    for start in range(worker * batch_size, len(positions), workers * batch_size):
        yield positions[start : start + batch_size]


# -- the orders of the published kara-storage, by row number -----------------------------------------------


def order_of_2(rows: int, *, seed: int = 0, epoch: int = 0, buffer_size: int = 4096) -> Iterator[int]:
    """As kara-storage 2.1.5 shuffles: a random row of a pool, which the next unread row replaces.

    Its seed and epoch are added up: epoch 1 of seed 3 is epoch 0 of seed 4.
    """
    if buffer_size < 1:
        raise ValueError(f"buffer_size must be at least 1, got {buffer_size}")
    generator = random.Random(seed + epoch)
    pool = list(range(min(rows, buffer_size)))
    unread = len(pool)
    if _has_numpy() and rows - unread >= _VECTOR_FROM:
        for some in _exchanges(generator, pool, rows):
            yield from some
        unread = rows
    while pool:
        index = int(generator.random() * len(pool))
        row = pool[index]
        if unread < rows:
            pool[index] = unread
            unread += 1
        else:
            pool[index] = pool[-1]
            pool.pop()
        yield row


def _exchanges(generator: random.Random, pool: list[int], rows: int) -> Iterator[list[int]]:
    """What leaves the pool of `order_of_2` while rows come in, thousands at a time: in half the time.

    numpy's RandomState is the same Mersenne Twister and makes the same floats of it, in one call. At the
    end `generator` and `pool` are where they would be.
    """
    import numpy as np

    twister = np.random.RandomState()
    version, state, gauss = generator.getstate()
    twister.set_state(("MT19937", state[:-1], state[-1], 0, 0.0))
    held = np.array(pool)
    narrow = np.uint16 if len(pool) <= 1 << 16 else np.int64  # which numpy sorts by radix
    for first in range(len(pool), rows, _EXCHANGED):
        new = np.arange(first, min(first + _EXCHANGED, rows))
        places = (twister.random_sample(len(new)) * len(held)).astype(narrow)
        out = held[places]
        # A place that is drawn again holds the row that came in when it was drawn last.
        by_place = np.argsort(places, kind="stable")
        again = np.flatnonzero(places[by_place[1:]] == places[by_place[:-1]])
        out[by_place[again + 1]] = new[by_place[again]]
        held[places] = new  # of several for one place the last one stays
        yield out.tolist()
    after: Any = twister.get_state()
    _, words, at, *_ = after
    generator.setstate((version, (*words.tolist(), at), gauss))
    pool[:] = held.tolist()


def order_of_1(
    rows: int, *, seed: int = 0, epoch: int = 0, buffer_size: int = 10240, shuffle_ratio: float = 0.1
) -> Iterator[int]:
    """As kara-storage 1.x is documented to shuffle: `shuffle_ratio` of a buffer is swapped and handed out.

    Raises ValueError where that part is not more than one row, as it does.
    """
    step = int(buffer_size * shuffle_ratio)
    if step <= 1 or step > buffer_size:
        raise ValueError(
            f"Shuffle ratio is too small or above 1: {shuffle_ratio} of {buffer_size} rows is {step}"
        )
    generator = random.Random(seed + epoch)
    buffer = list(range(min(rows, buffer_size - step)))
    unread = len(buffer)
    while True:
        more = min(rows - unread, step)
        buffer += range(unread, unread + more)
        unread += more
        count = min(step, len(buffer))
        if not count:
            return
        for index in range(count):
            other = int(generator.random() * len(buffer))
            buffer[index], buffer[other] = buffer[other], buffer[index]
        yield from buffer[:count]
        del buffer[:count]


def window_of_2(rows: int, shard: Shard) -> range:
    """The rows that a rank reads under kara-storage 2.1.5. Nobody reads `rows % shard.count` of them."""
    start = rows * shard.index // shard.count
    return range(start, start + rows // shard.count)
