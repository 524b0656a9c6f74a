"""Large reads in pieces: how many connections, which pieces, and who may write into the caller's memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.reading.lanes import LANES, Lanes
from kara_cache.reading.wide_reads import WIDE_BYTES, WideReads, cut
from kara_cache.stripe import STRIPE_BYTES

WAIT_S = 20.0
MIB = 1 << 20
MOST = LANES[-1]


def soon() -> float:
    return monotonic() + WAIT_S


# -- how many ------------------------------------------------------------------------------------------


def after(rounds: int, speed_of: Callable[[int], float], lanes: Lanes) -> list[int]:
    used = []
    for _ in range(rounds):
        used.append(lanes.count)
        lanes.note(lanes.count, speed_of(lanes.count))
    return used


@pytest.mark.parametrize(
    ("speed_of", "want"),
    [
        pytest.param(lambda count: 3e9, 1, id="one host: no connection brings anything"),
        pytest.param(lambda count: 1e9 * min(count, 2), 2, id="two fill the link"),
        pytest.param(lambda count: 6e8 * count, 4, id="each brings as much as the first"),
        pytest.param(lambda count: 3e9 / count, 1, id="they are in each other's way"),
    ],
)
def test_as_many_as_bring_more(speed_of: Callable[[int], float], want: int) -> None:
    lanes = Lanes()
    used = after(200, speed_of, lanes)
    assert used[0] == MOST, "a process may read one checkpoint and no more"
    assert used[100:].count(want) > 90, "trials are rare"


def test_the_choice_follows_the_link() -> None:
    lanes = Lanes()
    after(50, lambda count: 3e9, lanes)
    assert after(300, lambda count: 6e8 * count, lanes)[-50:].count(4) > 40
    assert after(300, lambda count: 3e9, lanes)[-50:].count(1) > 40


def test_few_connections_are_left_to_the_callers_threads() -> None:
    assert [Lanes(most).count for most in (0, 1, 2, 3, 4, 8)] == [1, 1, 2, 2, 4, 4]
    alone = Lanes(1)
    assert set(after(50, lambda count: 1e9, alone)) == {1}


def test_a_round_of_another_choice_says_nothing() -> None:
    lanes, other = Lanes(), Lanes()
    for _ in range(10):
        lanes.note(1, 1e12)
    assert repr(lanes) == repr(other)


@given(st.lists(st.floats(1.0, 1e12), max_size=300), st.integers(0, 5))
def test_any_speeds_give_a_legal_choice(speeds: list[float], most: int) -> None:
    lanes = Lanes(most)
    for speed in speeds:
        assert lanes.count in LANES
        assert lanes.count <= max(1, most)
        lanes.note(lanes.count, speed)


# -- which pieces --------------------------------------------------------------------------------------


@given(st.integers(0, 5 * STRIPE_BYTES), st.integers(1, 20 * STRIPE_BYTES), st.sampled_from(LANES))
def test_pieces_cover_the_range_once_within_stripes(start: int, length: int, count: int) -> None:
    pieces = list(cut(start, start + length, count))
    at = start
    for first, last in sorted(pieces):
        assert first == at < last
        assert first // STRIPE_BYTES == (last - 1) // STRIPE_BYTES
        at = last
    assert at == start + length
    together = sum(last - first for first, last in pieces[:count])
    assert together <= max(STRIPE_BYTES, 4 * 4 * MIB) + count * MIB


def test_one_connection_asks_for_stripes_as_ever() -> None:
    got = list(cut(5, 3 * STRIPE_BYTES, 1))
    assert got == [(5, STRIPE_BYTES), (STRIPE_BYTES, 2 * STRIPE_BYTES), (2 * STRIPE_BYTES, 3 * STRIPE_BYTES)]


def test_neighbours_in_the_order_are_of_different_stripes() -> None:
    pieces = list(cut(0, 4 * STRIPE_BYTES, 4))
    assert [first // STRIPE_BYTES for first, _ in pieces] == [0, 1, 2, 3] * 4
    assert all(first % MIB == last % MIB == 0 for first, last in pieces)


# -- reading -------------------------------------------------------------------------------------------


class Fixed(Lanes):
    """So many, whatever happens."""

    count = MOST  # type: ignore[assignment]

    def note(self, count: int, speed: float) -> None:
        pass


@pytest.fixture
def wide() -> Iterator[WideReads]:
    made = WideReads(Fixed())
    yield made
    made.close()


def test_every_byte_is_read_once_by_several_threads_at_a_time(wide: WideReads) -> None:
    together = threading.Barrier(MOST, timeout=WAIT_S)
    read = bytearray(4 * STRIPE_BYTES // MIB)

    def piece(start: int, stop: int) -> bool:
        if stop <= STRIPE_BYTES:  # the first round's four pieces: none ends before all have begun
            together.wait()
        for at in range(start // MIB, stop // MIB):
            read[at] += 1
        return True

    wide.read(0, len(read) * MIB, piece, soon())
    assert read == b"\1" * len(read)


def test_after_an_error_nobody_writes_any_more(wide: WideReads) -> None:
    begun, failed = threading.Barrier(MOST, timeout=WAIT_S), threading.Event()
    running, seen = [], []

    def piece(start: int, stop: int) -> bool:
        running.append(start)
        if begun.wait() == 0:
            failed.set()
            raise FileNotFoundError("gone")
        failed.wait(WAIT_S)
        seen.append(start)
        running.remove(start)
        return True

    with pytest.raises(FileNotFoundError):
        wide.read(0, 8 * STRIPE_BYTES, piece, soon())
    assert len(seen) == MOST - 1
    assert len(running) == 1, "only the one that failed; no piece began after it"


def test_an_error_in_any_thread_is_raised_in_the_callers(wide: WideReads) -> None:
    begun = threading.Barrier(MOST, timeout=WAIT_S)

    def piece(start: int, stop: int) -> bool:
        begun.wait()
        if threading.current_thread() is not threading.main_thread():
            raise PermissionError(str(start))
        return True

    with pytest.raises(PermissionError):
        wide.read(0, STRIPE_BYTES, piece, soon())


def test_without_threads_the_caller_reads_all(wide: WideReads) -> None:
    wide.close()
    pieces: list[tuple[int, int]] = []
    wide.read(0, 3 * STRIPE_BYTES, lambda *piece: not pieces.append(piece), soon())
    assert sum(stop - start for start, stop in pieces) == 3 * STRIPE_BYTES


def test_the_speed_of_a_store_says_nothing_of_connections() -> None:
    noted: list[int] = []

    class Noting(Fixed):
        def note(self, count: int, speed: float) -> None:
            noted.append(count)

    made = WideReads(Noting())
    for hits in (False, True):
        made.read(0, WIDE_BYTES + 1, lambda start, stop, hits=hits: hits or start > 0, soon())
    made.close()
    assert noted == [MOST]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_with_threads_of_its_own(wide: WideReads) -> None:
    wide.read(0, STRIPE_BYTES, lambda start, stop: True, soon())
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            wide.after_fork()
            together = threading.Barrier(MOST, timeout=WAIT_S)
            wide.read(0, STRIPE_BYTES, lambda start, stop: together.wait() >= 0, soon())
            os.write(into, b"read")
        os._exit(0)
    os.close(into)
    with open(out, "rb") as answer:
        assert answer.read() == b"read"
    os.waitpid(pid, 0)
