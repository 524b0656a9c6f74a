"""The order of kara-storage 2.x over rows that are read one after the other: rows wait in the pool."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

from kara_cache.sampling import order_of_2


class Fetched(Protocol):
    """Some rows that are in memory; `kara_cache.storage.rows.row_objects.FetchedRows`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]:
        """The rows as objects."""
        ...

    def own_rows(self) -> list[bytes]: ...

    def replaced(self, numbers: Sequence[int], rows: list[bytes]) -> Fetched: ...


@runtime_checkable
class RangedRows(Protocol):
    """Rows that can be read one after the other, which is faster than by their numbers."""

    @property
    def mapped(self) -> bool: ...

    def fetch_range(self, start: int, stop: int) -> Iterator[Fetched]: ...

    def range_bytes(self, start: int, stop: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Pool:
    """A shuffle through a pool of `buffer_size` rows."""

    seed: int = 0
    buffer_size: int = 4096

    def __call__(self, rows: int, *, epoch: int = 0) -> Iterator[int]:
        """The order, as row numbers."""
        return order_of_2(rows, seed=self.seed, epoch=epoch, buffer_size=self.buffer_size)

    def bytes_of(self, rows: RangedRows, window: range) -> int:
        """About what these rows take in the pool."""
        return rows.range_bytes(window.start, window.stop) * self.buffer_size // max(1, len(window))

    def pass_over(self, rows: RangedRows, window: range, *, epoch: int) -> Iterator[Any]:
        """The rows of `window` in that order, each read when its turn in the data set comes.

        They become objects when they leave the pool: bytes are smaller, and no work for the garbage
        collector.
        """
        return chain.from_iterable(self._parts(rows, window, epoch))

    def _parts(self, rows: RangedRows, window: range, epoch: int) -> Iterator[Fetched]:
        take, size = random.Random(self.seed + epoch).random, self.buffer_size
        pool: list[bytes] = []
        fetched, given = None, 0
        for fetched in rows.fetch_range(window.start, window.stop):
            new = fetched.own_rows()
            if room := size - len(pool):
                pool += new[:room]
                new = new[room:]
            out = _exchange(pool, [int(take() * size) for _ in new], new)
            yield fetched.replaced(_Numbers(self, window, epoch, given), out)
            given += len(out)
        if fetched is not None:
            yield fetched.replaced(_Numbers(self, window, epoch, given), _drain(pool, take))


def _exchange(pool: list[bytes], places: list[int], new: list[bytes]) -> list[bytes]:
    out = []
    for place, row in zip(places, new, strict=True):
        out.append(pool[place])
        pool[place] = row
    return out


def _drain(pool: list[bytes], take: Callable[[], float]) -> list[bytes]:
    out = []
    while pool:
        place = int(take() * len(pool))
        out.append(pool[place])
        pool[place] = pool[-1]
        pool.pop()
    return out


class _Numbers(Sequence[int]):
    """Numbers of rows that left the pool, from the `first` on: only an error asks for one, and waits."""

    def __init__(self, pool: Pool, window: range, epoch: int, first: int) -> None:
        self._pool = pool
        self._window = window
        self._epoch = epoch
        self._first = first

    def __len__(self) -> int:
        return len(self._window) - self._first

    def __getitem__(self, index: Any) -> Any:
        order = self._pool(len(self._window), epoch=self._epoch)
        return self._window[next(islice(order, self._first + index, None))]
