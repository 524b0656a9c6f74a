"""The part of a load job that falls to one worker: its pages, fetched beside what readers need."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from kara_cache.errors import CacheError, StaleVersion, UnderStoreError, WorkerBusy
from kara_cache.page import PageId
from kara_cache.ufs.base import FileInfo
from kara_worker.byte_budget import ByteBudget
from kara_worker.config import LoadConfig
from kara_worker.file_facts import FileFacts
from kara_worker.jobs.batch import Action, Batch, Failure, Outcome, Piece, Reason
from kara_worker.jobs.gate import Gate
from kara_worker.jobs.load_metrics import LoadMetrics
from kara_worker.jobs.throttle import Throttle
from kara_worker.page_cache import RUN_BYTES, FileRef, PageCache

log = logging.getLogger(__name__)

_FORGET_AFTER_S = 600.0  # without a batch: its coordinator is gone and nobody took over; chosen by feel
_ENDED_KEPT = 1000
_ROOM_S = 0.01
_LOOK_S = 0.05  # 20 looks a second cost 1 ms of them
_TURN = 16  # files between two looks at what else the event loop has to do
_MEMORY_WAIT_S = 3600.0  # what is ahead in the queue may be slow on purpose


class Run(NamedTuple):
    """Neighbouring pages of a piece: what one request to the store may bring."""

    piece: int  # index in the batch
    of: int  # pages of that piece
    ref: FileRef
    pages: range


@dataclass(slots=True)
class Visit:
    """A job as this worker knows it."""

    bandwidth: Throttle
    rate: Throttle
    held: set[bytes] = field(default_factory=set)  # files that are sheltered until the job ends
    running: set[asyncio.Task[Outcome]] = field(default_factory=set)
    seen: float = 0.0  # monotonic


@dataclass(slots=True)
class Count:
    """Of one batch, while it runs."""

    pages: int = 0
    present: int = 0
    fetched: int = 0
    bytes_fetched: int = 0
    requests: int = 0
    failures: list[Failure] = field(default_factory=list)


class LoadOwner:
    """Event loop only. Requests to stores run in threads of its own, so readers' fills never queue behind."""

    def __init__(
        self,
        cache: PageCache,
        facts: FileFacts,
        metrics: LoadMetrics,
        config: LoadConfig,
        *,
        reads: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reads` counts the pages that readers have asked for so far."""
        self._cache = cache
        self._facts = facts
        self._metrics = metrics
        self._clock = clock
        self._gate = Gate(config.load_threads)
        self._reads = reads
        self._parallel = config.load_threads
        self._memory = ByteBudget(config.load_memory_bytes, what="load memory")
        self._bytes = Throttle(config.load_bandwidth_bytes_per_s)
        self._requests = Throttle(config.load_requests_per_s)
        self._threads = ThreadPoolExecutor(config.load_threads, thread_name_prefix="load")
        self._promised = 0  # bytes that are being fetched
        self._visits: dict[str, Visit] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # the last ones

    async def run(self, batch: Batch) -> Outcome:
        """Does it and tells. CancelledError when the job is ended meanwhile, WorkerBusy when it had been."""
        if batch.job in self._ended:
            raise WorkerBusy(f"load job {batch.job} was ended")  # this batch was still on its way
        visit = self._visit(batch)
        task = asyncio.get_running_loop().create_task(self._run(batch, visit))
        visit.running.add(task)
        try:
            return await asyncio.shield(task)
        finally:
            visit.running.discard(task)
            task.cancel()

    def end(self, job: str) -> None:
        """The job is over, whatever came of it: nothing more is fetched, its pages are like any others."""
        self._ended[job] = None
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        self._forget(job)

    def _forget(self, job: str) -> None:
        visit = self._visits.pop(job, None)
        if visit is None:
            return
        for task in visit.running:
            task.cancel()
        for file_id in visit.held:
            self._cache.pages.expose(file_id)

    async def watch(self) -> None:
        """Looks how late the event loop is, and makes way for readers. Runs until it is cancelled."""
        loop, reads = asyncio.get_running_loop(), self._reads()
        while True:
            due = loop.time() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            before, reads = reads, self._reads()
            self._gate.note(loop.time() - due, readers=reads != before)

    def forget_idle(self) -> None:
        """Ends jobs whose coordinators fell silent. To be called now and then."""
        now = self._clock()
        for job, visit in list(self._visits.items()):
            if not visit.running and now - visit.seen > _FORGET_AFTER_S:
                log.info("load job %s: nothing heard for %g s", job, _FORGET_AFTER_S)
                self._forget(job)

    def close(self) -> None:
        for job in list(self._visits):
            self.end(job)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _visit(self, batch: Batch) -> Visit:
        visit = self._visits.get(batch.job)
        if visit is None:
            visit = self._visits[batch.job] = Visit(Throttle(None), Throttle(None))
        visit.seen = self._clock()
        visit.bandwidth.per_s = batch.bandwidth_bytes_per_s
        visit.rate.per_s = batch.requests_per_s
        return visit

    async def _run(self, batch: Batch, visit: Visit) -> Outcome:
        count = Count()
        if batch.action is Action.FACTS:
            self._remember(batch.pieces)
        else:
            refs = await self._refs(batch, visit, count)
            runs = _runs(batch.pieces, refs, self._cache.page_bytes)
            workers = [self._work(batch, visit, runs, count) for _ in range(self._parallel)]
            await asyncio.gather(*workers)
        visit.seen = self._clock()
        self._metrics.count(count.present - count.fetched, count.fetched, count.bytes_fetched, count.requests)
        self._metrics.count_failures(count.failures)
        return Outcome(
            count.pages,
            count.present,
            count.fetched,
            count.bytes_fetched,
            count.requests,
            tuple(count.failures),
        )

    def _remember(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            self._facts.remember(FileInfo(piece.path, piece.size, piece.version))

    async def _refs(self, batch: Batch, visit: Visit, count: Count) -> list[FileRef | None]:
        """The files, which from now on stay. Readers get their turn in between."""
        refs: list[FileRef | None] = []
        for index, piece in enumerate(batch.pieces):
            ref = self._ref(index, piece, count)
            refs.append(ref)
            if ref is not None and batch.action is Action.LOAD and ref.file_id not in visit.held:
                visit.held.add(ref.file_id)
                self._cache.pages.shelter(ref.file_id)
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
        return refs

    def _ref(self, index: int, piece: Piece, count: Count) -> FileRef | None:
        """The file, or None and its pages counted as failed."""
        pages = _pages(piece, self._cache.page_bytes)
        count.pages += len(pages)
        try:
            ref = self._cache.ref(piece.path, piece.version, piece.size)
        except (ValueError, OSError) as exc:
            count.failures.append(Failure(index, len(pages), len(pages), _reason(exc), _text(exc)))
            return None
        if not ref.keepable and len(pages):
            text = f"{piece.path}: the store gives no version"
            count.failures.append(Failure(index, len(pages), len(pages), Reason.UNVERSIONED, text))
            return None
        return ref

    async def _work(self, batch: Batch, visit: Visit, runs: Iterator[Run], count: Count) -> None:
        for run in runs:
            try:
                fetched, requests = await self._run_one(batch, visit, run)
            except (OSError, ValueError, CacheError) as exc:
                missing = self._missing(run)
                count.present += len(run.pages) - len(missing)
                reason, text = _reason(exc), _text(exc)
                if missing:
                    count.failures.append(Failure(run.piece, len(missing), run.of, reason, text))
                continue
            missing = self._missing(run)
            count.present += len(run.pages) - len(missing)
            if missing:
                count.failures.append(self._explain(batch, run, missing))
            count.fetched += len(fetched)
            count.bytes_fetched += sum(self._length(run.ref, index) for index in fetched)
            count.requests += requests

    async def _run_one(self, batch: Batch, visit: Visit, run: Run) -> tuple[list[int], int]:
        """(indices of pages that this job has fetched, now or before it was interrupted; requests)."""
        if batch.verify:
            await self._cache.check(run.ref, *self._bytes_of(run.ref, run.pages))
        if batch.action is Action.LOOK:
            return [], 0
        before: list[int] = []
        if batch.since_ns:
            before = await self._cache.run_on_disk(self._filled_since, batch, run)
        missing = self._missing(run)
        if not missing:
            return before, int(bool(before))
        size = sum(self._length(run.ref, index) for index in missing)
        for throttle, amount in (
            (self._requests, 1), (visit.rate, 1), (self._bytes, size), (visit.bandwidth, size)
        ):  # fmt: skip
            await throttle.take(amount)
        async with self._gate:
            await self._memory.acquire(size, _MEMORY_WAIT_S)
            try:
                if not await self._room_for(size, run.ref.mount.name):
                    return before, int(bool(before))
                self._promised += size
                try:
                    fetched, requests = await self._cache.bring(run.ref, missing, self._threads)
                finally:
                    self._promised -= size
            finally:
                self._memory.release(size)
        return before + fetched, requests + int(bool(before))

    async def _room_for(self, size: int, mount: str) -> bool:
        """Whether there is room beside what others are fetching, which may be counted twice for a moment:
        on its way and there already. Then it waits for them."""
        pages = self._cache.pages
        while not pages.has_room(self._promised + size, group=mount):
            if not self._promised or not pages.has_room(size, group=mount):
                return False
            await asyncio.sleep(_ROOM_S)
        return True

    def _filled_since(self, batch: Batch, run: Run) -> list[int]:
        """On a disk thread: pages filled since the job began; older ones are dropped where it insists."""
        pages, found = self._cache.pages, []
        for index in run.pages:
            stored = pages.get(PageId(run.ref.file_id, index))
            if stored is None:
                continue
            if stored.header.created_ns >= batch.since_ns:
                found.append(index)
            elif batch.force:
                pages.drop(stored.header.page, "free")
        return found

    def _missing(self, run: Run) -> list[int]:
        pages, file_id = self._cache.pages, run.ref.file_id
        return [index for index in run.pages if not pages.contains(PageId(file_id, index))]

    def _explain(self, batch: Batch, run: Run, missing: list[int]) -> Failure:
        size = self._length(run.ref, missing[0])
        if batch.action is Action.LOOK:
            reason = Reason.MISSING
        elif not self._cache.pages.has_room(size, group=run.ref.mount.name):
            reason = Reason.NO_ROOM
        else:
            reason = Reason.NOT_KEPT
        return Failure(run.piece, len(missing), run.of, reason, f"{run.ref.path}: {reason.value}")

    def _length(self, ref: FileRef, index: int) -> int:
        page_bytes = self._cache.page_bytes
        return min(page_bytes, ref.size - index * page_bytes)

    def _bytes_of(self, ref: FileRef, pages: range) -> tuple[int, int]:
        page_bytes = self._cache.page_bytes
        return pages.start * page_bytes, min(pages.stop * page_bytes, ref.size)


def _pages(piece: Piece, page_bytes: int) -> range:
    if piece.start >= piece.stop:
        return range(0)
    return range(piece.start // page_bytes, (piece.stop - 1) // page_bytes + 1)


def _runs(pieces: Sequence[Piece], refs: Sequence[FileRef | None], page_bytes: int) -> Iterator[Run]:
    step = max(1, RUN_BYTES // page_bytes)
    for index, (piece, ref) in enumerate(zip(pieces, refs, strict=True)):
        if ref is None:
            continue
        pages = _pages(piece, page_bytes)
        for first in range(pages.start, pages.stop, step):
            yield Run(index, len(pages), ref, range(first, min(first + step, pages.stop)))


def _reason(exc: Exception) -> Reason:
    if isinstance(exc, StaleVersion):
        return Reason.CHANGED
    if isinstance(exc, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return Reason.NOT_FOUND
    if isinstance(exc, PermissionError):
        return Reason.FORBIDDEN
    if isinstance(exc, UnderStoreError):
        return Reason.STORE_ERROR
    return Reason.INTERNAL


def _text(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__)[:300]
