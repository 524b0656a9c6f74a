"""A large read in pieces over several connections at once, all into the caller's memory.

One connection carries what its window allows in a round trip, and what one processor receives. Whether
more of them bring more is measured, not assumed (`lanes.py`): on one host they do not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from time import monotonic

from kara_cache.errors import WorkerUnavailable
from kara_cache.read_window import MAX_CHUNK_BYTES, UNIT_BYTES
from kara_cache.reading.lanes import Lanes
from kara_cache.reading.read_threads import ReadThreads
from kara_cache.stripe import STRIPE_BYTES, stripes

WIDE_BYTES = MAX_CHUNK_BYTES  # reads of more may go in pieces; those of read-ahead have threads already
_LEAST_PIECE_BYTES = 4 * UNIT_BYTES  # below, the request weighs more than what it overlaps
_ROUND_BYTES = STRIPE_BYTES  # of which throughput is taken: tens of milliseconds
_LONG_ROUND_BYTES = 16 * STRIPE_BYTES  # when the choice is settled
_GRACE_S = 5.0  # beyond the deadline, at which every piece ends by itself

ReadPiece = Callable[[int, int], bool]
"""Reads bytes [start, stop) into their place, or raises; whether they came from a worker's SSD."""


class WideReads:
    """Thread-safe; usable in a forked child after `after_fork`."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._noting = threading.Lock()  # guards _lanes
        self._threads = ReadThreads()

    def __repr__(self) -> str:
        return f"<WideReads {self._lanes}>"

    def read(self, start: int, stop: int, read: ReadPiece, deadline: float) -> None:
        """Has every byte of [start, stop) read, each by one call of `read`; several run at a time.

        When one fails, no other begins, those that run are waited for, and the first error is raised: from
        then on nobody writes into the caller's memory.
        """
        at = start
        while at < stop:
            with self._noting:
                count, settled = self._lanes.count, self._lanes.settled
            end = min(stop, at + (_LONG_ROUND_BYTES if settled else _ROUND_BYTES))
            began = monotonic()
            round_ = _Round(cut(at, end, count), read)
            for _ in range(min(count, len(round_)) - 1):
                # a context for each: two threads cannot be in one, and spans belong to the caller's
                self._threads.submit(partial(copy_context().run, round_.work))
            round_.work()
            if round_.finish(deadline + _GRACE_S):  # the speed of a store says nothing of connections
                with self._noting:
                    self._lanes.note(count, (end - at) / (monotonic() - began))
            at = end

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._noting = threading.Lock()
        self._threads.after_fork()

    def close(self) -> None:
        self._threads.close()


class _Round:
    """Pieces that are taken by whoever is free."""

    def __init__(self, pieces: Iterator[tuple[int, int]], read: ReadPiece) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._pieces = deque(pieces)
        self._running = 0
        self._hits = True
        self._error: BaseException | None = None
        self._read = read

    def __len__(self) -> int:
        return len(self._pieces)

    def work(self) -> None:
        """Reads pieces until none is left or one has failed. Never raises."""
        while True:
            with self._changed:
                if not self._pieces or self._error is not None:
                    return
                piece = self._pieces.popleft()
                self._running += 1
            hit, error = False, None
            try:
                hit = self._read(*piece)
            except BaseException as exc:  # noqa: BLE001 - raised by `finish`, in the caller's thread
                error = exc
            with self._changed:
                self._running -= 1
                self._hits &= hit
                self._error = self._error or error
                self._changed.notify_all()

    def finish(self, until: float) -> bool:
        """Waits for pieces of others and raises the first error. Whether all came from a worker's SSD."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._running, until - monotonic()):
                raise WorkerUnavailable(
                    f"{self._running} pieces of a read on their way too long", reason="timeout"
                )
            if self._error is not None:
                raise self._error
            return self._hits


def cut(start: int, stop: int, count: int) -> Iterator[tuple[int, int]]:
    """Pieces for `count` connections, none across stripes, in the order in which to ask for them.

    Together they ask for as much as one request for a stripe does, so that a worker that has to fetch it
    does so with as many requests as ever. Neighbours in the order are of different stripes, which
    mostly are different workers'.
    """
    size = max(_LEAST_PIECE_BYTES, min(STRIPE_BYTES, stop - start) // count)
    size += -size % UNIT_BYTES  # whole pages travel under the sum of their fill
    left = deque((stripe.start, stripe.stop) for stripe in stripes(start, stop))
    while left:
        side_by_side = min(count, len(left))
        at, end = left.popleft()
        to = min(end, at - at % UNIT_BYTES + size)
        yield at, to
        if to < end:
            left.insert(side_by_side - 1, (to, end))
