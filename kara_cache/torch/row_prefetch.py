"""Rows in a known order, read in batches by a thread while the ones before them are used."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from sys import getsizeof
from typing import Any, Protocol, runtime_checkable

from kara_cache.torch.rows import Rows

FIRST_ROWS = 32  # read before anything is known of their size
MOST_ROWS = 1024  # of one read: an order is made in blocks of as many, and the first row waits for them all
MAPPED_BYTES = 1 << 20  # of one read from a mapping, where there is nothing to wait for: they stay in L2
PARTS = 4  # of the bound: one is used, one is being read, the others wait
AT_HAND_READS = 4  # so many reads that waited for nobody, and reading in advance gains nothing
_LOOKED_INTO = 8  # rows of a batch whose size is measured; the others are taken to be like them
_DEPTH = 4  # of containers in a row
_WAIT_S = 60.0  # then a waiting thread looks again; only a bound, it is told of every change


@runtime_checkable
class MappedRows(Protocol):
    """Rows that may lie in this process's memory; `RowDataset` is such."""

    @property
    def mapped(self) -> bool: ...

    def __len__(self) -> int: ...

    def range_bytes(self, start: int, stop: int) -> int: ...

    def fetch_batch(self, indices: Any) -> Iterable[Any]: ...


class RowPrefetch:
    """Iterates over the rows of `order`; ahead of use are about `limit_bytes`, or one read if it is larger.

    With a limit of 0 rows are read when they are asked for, without a thread. There is none either for rows
    that say that they are `mapped`: it would only take the interpreter from the one that uses them (1.6 us
    a row against 1.1). Rows that can be fetched without being made into objects (`RowDataset.fetch_batch`)
    are read so as long as they are `at_hand`, in pages of this host: a thread begins when a read had to
    wait, and ends when a few had not. Sizes are those of Python's objects, measured on a few rows of each
    read. What a read raises is raised when its first row is due. No thread starts before the first row; it is
    a daemon, and ends when the rows or the iterator do.
    """

    def __init__(self, rows: Rows, order: Iterator[int], *, limit_bytes: int) -> None:
        self._rows = rows
        self._order = order
        self._limit_bytes = limit_bytes

    def __iter__(self) -> Iterator[Any]:
        if not self._limit_bytes:
            return self._when_asked(self._rows.read_batch, FIRST_ROWS)
        if isinstance(self._rows, MappedRows) and self._rows.mapped:
            count = len(self._rows)
            mean = self._rows.range_bytes(0, count) // max(1, count)
            return self._when_asked(self._rows.fetch_batch, MAPPED_BYTES // max(1 << 10, mean) or 1)
        return self._ahead()

    def _when_asked(self, fetch: Callable[[list[int]], Iterable[Any]], count: int) -> Iterator[Any]:
        numbers: Iterator[list[int]] = iter(lambda: list(islice(self._order, count)), [])
        return chain.from_iterable(map(fetch, numbers))

    def _ahead(self) -> Iterator[Any]:
        fetch = getattr(self._rows, "fetch_batch", None)
        batch: Iterable[Any] | None = ()
        while batch is not None:
            if fetch is not None:
                batch = yield from self._while_at_hand(fetch)
                if batch is None:
                    return
            queue = _Queue(self._limit_bytes)
            threading.Thread(
                target=_read_ahead, args=(self._rows, self._order, queue), name="kara-rows", daemon=True
            ).start()
            try:
                yield from batch
                while (batch := queue.get()) is not None and batch is not _AT_HAND:
                    yield from batch
            finally:
                queue.close()

    def _while_at_hand(self, fetch: Callable[[list[int]], Any]) -> Generator[Any, None, Iterable[Any] | None]:
        """Ends with rows that had to be waited for, read and not given yet; None at the end of the order."""
        count = FIRST_ROWS
        while numbers := list(islice(self._order, count)):
            batch = fetch(numbers)
            if not getattr(batch, "at_hand", False):
                return batch  # type: ignore[no-any-return]
            count = max(1, min(MOST_ROWS, MAPPED_BYTES * len(batch) // max(1, batch.nbytes)))
            yield from batch
        return None


class _Queue:
    """Batches between the reading thread and its one consumer."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._batches: deque[tuple[Iterable[Any] | BaseException | None, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._pid = os.getpid()

    def wait_for_room(self, size: int) -> bool:
        """Returns when `size` bytes fit, or nothing is queued; False when nobody wants more."""
        with self._changed:
            while not self._closed and self._batches and self._bytes + size > self._limit_bytes:
                self._changed.wait(_WAIT_S)
            return not self._closed

    def put(self, batch: Iterable[Any] | BaseException | None, size: int = 0) -> None:
        """None is the end; an exception is one, too."""
        with self._changed:
            self._batches.append((batch, size))
            self._bytes += size
            self._changed.notify_all()

    def get(self) -> Iterable[Any] | None:
        if os.getpid() != self._pid:
            raise RuntimeError("this iterator began before a fork; begin another one in the child")
        with self._changed:
            while not self._batches:
                self._changed.wait(_WAIT_S)
            batch, size = self._batches.popleft()
            self._bytes -= size
            self._changed.notify_all()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child drops the parent's iterator; its thread is not here, its lock may be held
        with self._changed:
            self._closed = True
            self._batches.clear()
            self._changed.notify_all()


_AT_HAND: list[Any] = []  # the last batch of a thread that is not needed any more


def _read_ahead(rows: Rows, order: Iterator[int], queue: _Queue) -> None:
    """Holds nothing of the iterator that uses the rows, so that dropping that one closes the queue.

    Rows that can be fetched without being made into objects (`RowDataset.fetch_batch`) become objects in
    the thread that uses them: two threads that make objects only take the interpreter from each other,
    and those that wait in a queue are work for the garbage collector (JSON: 6 us a row against 10).
    """
    fetch: Any = getattr(rows, "fetch_batch", rows.read_batch)
    at_hand = 0
    part_bytes = queue._limit_bytes / PARTS
    count, expected = FIRST_ROWS, 0.0
    try:
        while queue.wait_for_room(int(expected)):
            numbers = list(islice(order, count))
            if not numbers:
                queue.put(None)
                return
            batch = fetch(numbers)
            size = batch.nbytes if fetch != rows.read_batch else size_of(batch)
            queue.put(batch, size)
            at_hand = at_hand + 1 if getattr(batch, "at_hand", False) else 0
            if at_hand == AT_HAND_READS:
                queue.put(_AT_HAND)
                return
            count = max(1, min(MOST_ROWS, int(part_bytes * len(batch) / max(1, size))))
            expected = count * size / len(batch)
            del batch
    except BaseException as error:  # noqa: BLE001 - the top of a thread; raised where the rows are used
        queue.put(error)


def size_of(rows: list[Any]) -> int:
    """Bytes of memory, by the sizes of some of them."""
    some = rows[:: -(-len(rows) // _LOOKED_INTO)] if rows else []
    return sum(_size(row, _DEPTH) for row in some) * len(rows) // max(1, len(some))


def _size(value: Any, depth: int) -> int:
    nbytes = getattr(value, "nbytes", None)  # arrays, tensors and memoryviews
    if isinstance(nbytes, int):
        return nbytes
    size = getsizeof(value)
    if depth and isinstance(value, dict):
        return size + sum(_size(key, 0) + _size(item, depth - 1) for key, item in value.items())
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return size + sum(_size(item, depth - 1) for item in value)
    return size
