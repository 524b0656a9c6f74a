"""What is to be done of a chunk, piece by piece, and when to try a piece again."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from kara_cache.stripe import stripes
from kara_cache.ufs.base import FileInfo
from kara_worker.jobs.batch import Piece
from kara_worker.jobs.feed import Chunk

_BATCH_PIECES = 128
_BATCH_BYTES = 64 << 20  # a stripe; small enough that a worker's part is told while others work
_ATTEMPTS = 6  # of one piece at the store, with 0.5 + 1 + 2 + 4 + 8 s between them
_LEAST_PARKED_S = 40.0  # for a worker that nobody replaces; chosen by feel
_PARKED_S = 0.5
_BACKOFF_S = 0.5
_RETRY_SHARE, _RETRY_LEAST = 10, 1000  # retries: a tenth of the errands, and these; then failures are final


@dataclass(slots=True)
class Errand:
    """One piece that one worker has to deal with."""

    chunk: Chunk
    info: FileInfo
    piece: Piece
    stripe: int
    rank: int = 0  # which of the owners: 0, and more for replicas
    origin: str = ""  # the worker that has its pages already
    attempt: int = 0  # how often the store has failed it
    troubled_at: float | None = None  # monotonic; since when its worker does not answer

    def copies(self, origin: str) -> list[Errand]:
        """Those for the other owners, once the first is done with its own: the store gives each page once."""
        if self.rank or self.chunk.copies == 1:
            return []
        made = replace(self, origin=origin, attempt=0, troubled_at=None)
        return [replace(made, rank=rank) for rank in range(1, self.chunk.copies)]


def errands_of(chunk: Chunk, *, whole_files: bool) -> Iterator[Errand]:
    """One for each stripe, with `whole_files` for each file. Empty files have no stripe."""
    for info in chunk.files:
        if whole_files:
            yield Errand(chunk, info, Piece(info.path, info.version, info.size, 0, 0), 0)
            continue
        for stripe in stripes(0, info.size):
            piece = Piece(info.path, info.version, info.size, stripe.start, stripe.stop)
            yield Errand(chunk, info, piece, stripe.index)


def batches(errands: list[Errand]) -> Iterator[list[Errand]]:
    """Bounded by count for small files and by bytes for large ones; none is empty."""
    batch: list[Errand] = []
    size = 0
    for errand in errands:
        length = errand.piece.stop - errand.piece.start
        if batch and (len(batch) == _BATCH_PIECES or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(errand)
        size += length
    if batch:
        yield batch


class Retries:
    """Errands that wait for another attempt, and the budget for them."""

    def __init__(self, *, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`patience_s`: how long others wait for a worker; an errand is given up after twice that."""
        self._clock = clock
        self._parked_s = max(_LEAST_PARKED_S, 2 * patience_s)
        self._waiting: list[tuple[float, int, Errand]] = []  # heap by the time when they are due
        self._numbers = itertools.count()
        self._given = 0
        self._errands = 0

    def expect(self, errands: int) -> None:
        """So many more are on their way: the budget grows with them."""
        self._errands += errands

    def put(self, errand: Errand) -> bool:
        """False, and nothing done, where the piece or the job has had its attempts."""
        if errand.attempt + 1 >= _ATTEMPTS or self._given >= self._errands // _RETRY_SHARE + _RETRY_LEAST:
            return False
        self._given += 1
        due = self._clock() + _BACKOFF_S * 2**errand.attempt
        errand.attempt += 1
        heapq.heappush(self._waiting, (due, next(self._numbers), errand))
        return True

    def park(self, errand: Errand) -> bool:
        """It waits for its worker; False, and nothing done, when that has taken too long."""
        now = self._clock()
        if errand.troubled_at is None:
            errand.troubled_at = now
        if now - errand.troubled_at > self._parked_s:
            return False
        heapq.heappush(self._waiting, (now + _PARKED_S, next(self._numbers), errand))
        return True

    def due(self) -> list[Errand]:
        now, due = self._clock(), []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2])
        return due
