"""What is to be done of a chunk, piece by piece, and when to try a piece again."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kara_cache.stripe import stripes
from kara_cache.ufs.base import FileInfo
from kara_worker.jobs.batch import Piece
from kara_worker.jobs.feed import Chunk

_BATCH_PIECES = 128
_BATCH_BYTES = 64 << 20  # a stripe; small enough that a worker's part is told while others work
_ATTEMPTS = 6  # of one piece at the store, with 0.5 + 1 + 2 + 4 + 8 s between them
PATIENCE_S = 20.0  # for a worker that is silent: its lease ends before (15 s), or it was restarted
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
    rank: int  # which of the owners: 0, and more for replicas
    attempt: int = 0  # how often the store has failed it
    troubled_at: float | None = None  # monotonic; since when its worker does not answer


def errands_of(chunk: Chunk, *, copies: int, whole_files: bool) -> Iterator[Errand]:
    """One for each stripe and copy, with `whole_files` for each file and copy. Empty files have no stripe."""
    for info in chunk.files:
        if whole_files:
            piece = Piece(info.path, info.version, info.size, 0, 0)
            yield from (Errand(chunk, info, piece, 0, rank) for rank in range(copies))
            continue
        for stripe in stripes(0, info.size):
            piece = Piece(info.path, info.version, info.size, stripe.start, stripe.stop)
            yield from (Errand(chunk, info, piece, stripe.index, rank) for rank in range(copies))


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

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
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
        if now - errand.troubled_at > 2 * PATIENCE_S:
            return False
        heapq.heappush(self._waiting, (now + _PARKED_S, next(self._numbers), errand))
        return True

    def is_patient(self, errand: Errand) -> bool:
        """Whether its own worker may still come back: better late there than now where nobody looks."""
        return errand.troubled_at is None or self._clock() - errand.troubled_at < PATIENCE_S

    def due(self) -> list[Errand]:
        now, due = self._clock(), []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(heapq.heappop(self._waiting)[2])
        return due
