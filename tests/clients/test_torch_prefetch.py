from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import require_module

torch = require_module("torch")

from kara_cache.torch.row_prefetch import (  # noqa: E402
    AT_HAND_READS,
    FIRST_ROWS,
    MOST_ROWS,
    RowPrefetch,
    _Queue,
    size_of,
)
from kara_cache.torch.rows import MemoryRows  # noqa: E402

pytestmark = pytest.mark.clients
WAIT_S = 30.0


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kara-rows"]


def all_ended() -> bool:
    for thread in threads():
        thread.join(WAIT_S)
    return not threads()


class WatchedRows:
    """Rows of `size` bytes that count how many were read, and let a test wait for it."""

    def __init__(self, count: int, size: int, check: Callable[[Sequence[int]], None] | None = None) -> None:
        self._count, self._size, self._check = count, size, check
        self.read = 0
        self.batches: list[int] = []
        self.idle = threading.Event()

    def __len__(self) -> int:
        return self._count

    def read_batch(self, indices: Sequence[int]) -> list[bytes]:
        if self._check is not None:
            self._check(indices)
        self.batches.append(len(indices))
        self.read += len(indices)
        return [index.to_bytes(8, "big") + bytes(self._size - 8) for index in indices]


@given(
    order=st.lists(st.integers(0, 49), max_size=300),
    limit_bytes=st.sampled_from([0, 1, 500, 5000, 1 << 20]),
    sizes=st.lists(st.integers(0, 2000), min_size=50, max_size=50),
)
@settings(max_examples=50)
def test_rows_come_in_order(order: list[int], limit_bytes: int, sizes: list[int]) -> None:
    rows = MemoryRows([(number, bytes(size)) for number, size in enumerate(sizes)])
    got = [number for number, _ in RowPrefetch(rows, iter(order), limit_bytes=limit_bytes)]
    assert got == order
    assert all_ended()


def test_the_bound() -> None:
    """What is read and not yet used stays below the limit, and reads are as large as it allows."""
    limit, size = 1 << 20, 1 << 10
    rows = WatchedRows(20_000, size)
    used, most = 0, 0
    for _ in RowPrefetch(rows, iter(range(20_000)), limit_bytes=limit):
        used += 1
        most = max(most, rows.read - used)
    part = limit // 4 // (size + sys.getsizeof(b""))
    assert rows.batches[0] == FIRST_ROWS
    assert part - 2 <= max(rows.batches) <= part
    assert most * size <= limit + limit // 4  # one part is in use
    assert used == 20_000


def test_what_was_taken_makes_room() -> None:
    queue = _Queue(100)
    queue.put([1], 60)
    assert queue.get() == [1]
    queue.put([2], 60)
    waiting = threading.Thread(target=queue.wait_for_room, args=(40,), daemon=True)
    waiting.start()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_small_rows_are_read_by_the_thousand_and_large_ones_one_by_one() -> None:
    small, large = WatchedRows(5000, 8), WatchedRows(200, 1 << 20)
    for _ in RowPrefetch(small, iter(range(5000)), limit_bytes=1 << 20):
        pass
    for _ in RowPrefetch(large, iter(range(200)), limit_bytes=1 << 20):
        pass
    assert max(small.batches) == MOST_ROWS
    assert set(large.batches[1:]) == {1}


@pytest.mark.parametrize("limit_bytes", [0, 1000, 1 << 20])
def test_an_error_comes_where_its_rows_are_due(limit_bytes: int) -> None:
    def check(indices: Sequence[int]) -> None:
        if max(indices) >= FIRST_ROWS:
            raise OSError(5, "the disk is gone")

    rows = iter(RowPrefetch(WatchedRows(100, 8, check), iter(range(100)), limit_bytes=limit_bytes))
    assert len(list(islice(rows, FIRST_ROWS))) == FIRST_ROWS
    with pytest.raises(OSError, match="the disk is gone"):
        next(rows)
    assert list(rows) == []
    assert all_ended()


def test_an_order_that_fails() -> None:
    def order() -> Iterator[int]:
        yield from range(FIRST_ROWS)
        raise ValueError("no such order")

    rows = RowPrefetch(MemoryRows(range(100)), order(), limit_bytes=1000)
    with pytest.raises(ValueError, match="no such order"):
        list(rows)


class Batch(list[int]):
    """What was read, and whether it was at hand."""

    at_hand = False

    @property
    def nbytes(self) -> int:
        return 1000 * len(self)


class NearRows:
    """Rows of which the n-th read is at hand as `at_hand` says; who read is written down."""

    def __init__(self, at_hand: Callable[[int], bool]) -> None:
        self._at_hand = at_hand
        self.readers: list[str] = []

    def __len__(self) -> int:
        return 10**6

    def read_batch(self, indices: Sequence[int]) -> list[int]:
        raise NotImplementedError

    def fetch_batch(self, indices: Sequence[int]) -> Batch:
        batch = Batch(indices)
        batch.at_hand = self._at_hand(len(self.readers))
        self.readers.append(threading.current_thread().name)
        return batch


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 2000), st.integers(1, 1 << 22))
@settings(max_examples=50)
def test_rows_come_in_order_wherever_they_are(pattern: list[bool], count: int, limit_bytes: int) -> None:
    rows = NearRows(lambda read: pattern[read % len(pattern)])
    assert list(RowPrefetch(rows, iter(range(count)), limit_bytes=limit_bytes)) == list(range(count))
    assert all_ended()


def test_rows_at_hand_are_read_without_a_thread() -> None:
    rows = NearRows(lambda read: True)
    assert list(RowPrefetch(rows, iter(range(20_000)), limit_bytes=1 << 20)) == list(range(20_000))
    assert set(rows.readers) == {threading.current_thread().name}


def test_a_thread_reads_from_a_wait_on_until_nothing_waits() -> None:
    rows = NearRows(lambda read: not 2 <= read < 10)
    assert list(RowPrefetch(rows, iter(range(30_000)), limit_bytes=1 << 30)) == list(range(30_000))
    mine = threading.current_thread().name
    wanted = [mine] * 3 + ["kara-rows"] * (7 + AT_HAND_READS)
    assert rows.readers[: len(wanted)] == wanted
    assert set(rows.readers[len(wanted) :]) == {mine}


@pytest.mark.parametrize("dropped", [True, False])
def test_it_stops_at_once(dropped: bool) -> None:
    """When the iterator is closed or forgotten, also while the thread waits for room."""
    rows = iter(RowPrefetch(WatchedRows(10**6, 1000), iter(range(10**6)), limit_bytes=100_000))
    next(rows)
    assert threads()
    if dropped:
        del rows
        gc.collect()
    else:
        rows.close()  # type: ignore[attr-defined]  # it is a generator
    assert all_ended()


def test_nothing_starts_before_the_first_row() -> None:
    rows = WatchedRows(10, 8)
    made = iter(RowPrefetch(rows, iter(range(10)), limit_bytes=1000))
    assert not threads()
    del made
    assert rows.read == 0


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_drops_the_parents_iterator() -> None:
    """Its lock may be held by a thread that the child does not have."""
    inside, go = threading.Event(), threading.Event()

    def check(indices: Sequence[int]) -> None:
        if indices[0] >= FIRST_ROWS:
            inside.set()
            assert go.wait(WAIT_S)

    rows: Any = iter(RowPrefetch(WatchedRows(1000, 8, check), iter(range(1000)), limit_bytes=1000))
    next(rows)
    assert inside.wait(WAIT_S)
    queue = rows.gi_frame.f_locals["queue"]
    with queue._changed:  # as a thread would hold it
        pid = os.fork()
        if pid == 0:
            rows.close()
            os._exit(7)
        second = os.fork()
        if second == 0:
            try:
                list(rows)
            except RuntimeError as error:
                os._exit(8 if "before a fork" in str(error) else 1)
    _, status = os.waitpid(pid, 0)
    _, second_status = os.waitpid(second, 0)
    go.set()
    assert os.waitstatus_to_exitcode(second_status) == 8
    assert os.waitstatus_to_exitcode(status) == 7
    assert len(list(rows)) == 999


@pytest.mark.parametrize(
    ("row", "least", "most"),
    [
        (b"x" * 10_000, 10_000, 10_100),
        ("x" * 10_000, 10_000, 10_100),
        (torch.zeros(1000), 4000, 4000),
        ({"text": "x" * 10_000, "parts": [b"y" * 5000, (1, 2)]}, 15_000, 16_000),
        ([["x" * 3000] * 3] * 2, 18_000, 19_500),
    ],
)
def test_sizes(row: Any, least: int, most: int) -> None:
    assert least <= size_of([row]) <= most
    assert 30 * least <= size_of([row] * 30) <= 30 * most
    assert size_of([]) == 0
