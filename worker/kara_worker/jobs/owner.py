"""The part of a load job that falls to one worker: its pages, fetched beside what readers need."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice

from kara_cache.errors import CacheError, UnderStoreError, WorkerBusy
from kara_cache.page import PageId
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.ufs.base import FileInfo
from kara_worker.bring import Bringing, Brought
from kara_worker.byte_budget import ByteBudget
from kara_worker.config import LoadConfig
from kara_worker.fetch.source import Source
from kara_worker.file_facts import FileFacts
from kara_worker.jobs.batch import Action, Batch, Failure, Outcome, Piece, Reason, reason_of, text_of
from kara_worker.jobs.copies import Copies
from kara_worker.jobs.courtesy import Look
from kara_worker.jobs.gate import Gate
from kara_worker.jobs.load_metrics import LoadMetrics
from kara_worker.jobs.pace import StorePace
from kara_worker.jobs.processor_waits import ProcessorWaits
from kara_worker.jobs.readers import Readers
from kara_worker.jobs.runs import Run, group_bytes, group_files, grouped, pages_of, runs_of
from kara_worker.jobs.throttle import Throttle
from kara_worker.jobs.visit import Count, Visit
from kara_worker.page_cache import FileRef, PageCache

log = logging.getLogger(__name__)

_FORGET_AFTER_S = 600.0  # without a batch: its coordinator is gone and nobody took over; chosen by feel
_ENDED_KEPT = 1000
_ROOM_S = 0.01
_LOOK_S = 0.05  # 20 looks a second cost 1 ms of them
_REST_LOOKS = 200  # 10 s: the next job of a series finds everything warm
_AT_ONCE = 64  # files that an ended job lets go before the next request is served
_TURN = 16  # files between two looks at what else the event loop has to do
_HEADER_BYTES = (
    8192  # what a file takes on disk beside its bytes, at most: a page's header and its last block
)
_MEMORY_WAIT_S = 3600.0  # what is ahead in the queue may be slow on purpose


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
        source: Source,
        peers: Callable[[str], WorkerClient | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reads` counts the pages that readers have asked for so far; `source` is closed with this; `peers`
        gives the worker of an id."""
        self._cache = cache
        self._facts = facts
        self._metrics = metrics
        self._clock = clock
        self._gate = Gate(config.load_threads)
        self._pace = StorePace(config.load_threads)
        self._parallel = config.load_threads
        self._memory = ByteBudget(config.load_memory_bytes, what="load memory")
        self._bytes = Throttle(config.load_bandwidth_bytes_per_s)
        self._requests = Throttle(config.load_requests_per_s)
        self._threads = ThreadPoolExecutor(config.load_threads, thread_name_prefix="load")
        self._bringing = Bringing(cache, source, self._threads)
        self._copies = Copies(cache, peers)
        self._promised = 0  # bytes that are being fetched
        self._visits: dict[str, Visit] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # the last ones
        self._exposing: set[asyncio.Task[None]] = set()
        self._idle_looks = 0
        metrics.limit = lambda: self._gate.limit
        self._readers = Readers(reads, clock)

    async def run(self, batch: Batch) -> Outcome:
        """Does it and tells. CancelledError when the job is ended meanwhile, WorkerBusy when it had been."""
        if batch.job in self._ended:
            raise WorkerBusy(f"load job {batch.job} was ended")  # this batch was still on its way
        visit = self._visit(batch)
        if batch.readers:
            self._readers.are_elsewhere()
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
        held = iter(visit.held)
        for file_id in islice(held, _AT_ONCE):
            self._cache.pages.expose(file_id)
        if len(visit.held) > _AT_ONCE:
            exposing = asyncio.get_running_loop().create_task(self._expose(held))
            self._exposing.add(exposing)
            exposing.add_done_callback(self._exposing.discard)

    async def _expose(self, held: Iterator[bytes]) -> None:
        """Bit by bit: a million files at once would stop all readers for seconds."""
        for number, file_id in enumerate(held, 1):
            self._cache.pages.expose(file_id)
            if number % _TURN == 0:
                await asyncio.sleep(0)

    async def watch(self) -> None:
        """Looks how late the event loop is, and makes way for readers. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        with closing(ProcessorWaits()) as waits:
            while True:
                due = loop.time() + _LOOK_S
                await asyncio.sleep(_LOOK_S)
                self.make_way(waits.look(loop.time() - due))
                self._rest(loop)

    def make_way(self, look: Look) -> None:
        """For readers, here or where this job has other workers, as what was seen says."""
        self._gate.note(look, readers=self._readers.look())

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gives back what fetching took, a while after the last job."""
        self._idle_looks = 0 if self._visits else self._idle_looks + 1
        if self._idle_looks == _REST_LOOKS:
            loop.run_in_executor(self._threads, self._bringing.source.rest)

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
        for task in self._exposing:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._bringing.source.close()

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
            page_bytes = self._cache.page_bytes
            runs = runs_of(batch.pieces, refs, page_bytes)
            groups = grouped(
                runs, page_bytes, partial(self._most_files, visit), partial(self._most_bytes, visit)
            )
            workers = [self._work(batch, visit, groups, count) for _ in range(self._parallel)]
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
            readers=self._readers.here,
        )

    def _most_files(self, visit: Visit) -> int:
        return group_files(self._bringing.pace_s, self._requests.per_s, visit.rate.per_s)

    def _most_bytes(self, visit: Visit) -> int:
        return group_bytes(self._bytes.per_s, visit.bandwidth.per_s)

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
        pages = pages_of(piece, self._cache.page_bytes)
        count.pages += len(pages)
        try:
            ref = self._cache.ref(piece.path, piece.version, piece.size)
        except (ValueError, OSError) as exc:
            count.failures.append(Failure(index, len(pages), len(pages), reason_of(exc), text_of(exc)))
            return None
        if not ref.keepable and len(pages):
            text = f"{piece.path}: the store gives no version"
            count.failures.append(Failure(index, len(pages), len(pages), Reason.UNVERSIONED, text))
            return None
        return ref

    async def _work(self, batch: Batch, visit: Visit, groups: Iterator[list[Run]], count: Count) -> None:
        for group in groups:
            try:
                brought = await self._bring(batch, visit, group)
            except (OSError, ValueError, CacheError) as exc:
                brought = [Brought(error=exc) for _ in group]
            for run, told in zip(group, brought, strict=True):
                self._account(batch, run, told, count)

    def _account(self, batch: Batch, run: Run, told: Brought, count: Count) -> None:
        missing = self._missing(run)
        count.present += len(run.pages) - len(missing)
        if told.error is not None:
            if missing:
                reason, text = reason_of(told.error), text_of(told.error)
                count.failures.append(Failure(run.piece, len(missing), run.of, reason, text))
            return
        if missing:
            count.failures.append(self._explain(batch, run, missing))
        count.fetched += len(told.pages) + len(told.copied)
        count.bytes_fetched += sum(self._length(run.ref, index) for index in told.pages)
        count.requests += told.requests

    async def _bring(self, batch: Batch, visit: Visit, group: list[Run]) -> list[Brought]:
        """For each run the pages that this job has fetched, now or before it was interrupted."""
        if batch.verify:
            for run in group:
                await self._cache.check(run.ref, *self._bytes_of(run.ref, run.pages))
        told = [Brought() for _ in group]
        if batch.action is Action.LOOK:
            return told
        if batch.since_ns:
            found = await self._cache.run_on_disk(self._filled_since, batch, group)
            copied = bool(batch.origin)
            told = [Brought(copied=p) if copied else Brought(p, requests=int(bool(p))) for p in found]
        wanted = self._wanted(group)
        if batch.origin and wanted and await self._copy(batch.origin, wanted, told):
            wanted = self._wanted(group)
        if not wanted:
            return told
        files = len(wanted)
        size = sum(self._length(ref, index) for _, ref, missing in wanted for index in missing)
        for throttle, amount in (
            (self._requests, files), (visit.rate, files), (self._bytes, size), (visit.bandwidth, size)
        ):  # fmt: skip
            await throttle.take(amount)
        async with self._gate:
            for (at, _, _), brought in zip(wanted, await self._fetch(wanted, size), strict=True):
                told[at].pages += brought.pages
                told[at].requests += brought.requests
                self._learn(brought)
                told[at].error = brought.error
        return told

    def _wanted(self, group: list[Run]) -> list[tuple[int, FileRef, list[int]]]:
        """What is missing, with its place in the group."""
        return [(at, run.ref, missing) for at, run in enumerate(group) if (missing := self._missing(run))]

    async def _copy(
        self, origin: str, wanted: list[tuple[int, FileRef, list[int]]], told: list[Brought]
    ) -> bool:
        """Takes what another worker has; False where there is no room for it."""
        size = sum(self._length(ref, index) for _, ref, missing in wanted for index in missing)
        room = size + _HEADER_BYTES * (len(wanted) - 1)
        async with self._gate:
            await self._memory.acquire(size, _MEMORY_WAIT_S)
            try:
                if not await self._room_for(room, wanted[0][1].mount.name):
                    return False
                self._promised += room
                try:
                    files = [(ref, missing) for _, ref, missing in wanted]
                    loop = asyncio.get_running_loop()
                    copied = await loop.run_in_executor(self._threads, self._copies.take, origin, files)
                finally:
                    self._promised -= room
            finally:
                self._memory.release(size)
        for (at, _, _), pages in zip(wanted, copied, strict=True):
            told[at].copied += pages
        return True

    def _learn(self, brought: Brought) -> None:
        for length, seconds in brought.took:
            self._pace.took(length, seconds)
        if isinstance(brought.error, UnderStoreError):
            self._pace.failed()
        self._gate.bound(self._pace.limit)

    async def _fetch(self, wanted: list[tuple[int, FileRef, list[int]]], size: int) -> list[Brought]:
        await self._memory.acquire(size, _MEMORY_WAIT_S)
        try:
            room = size + _HEADER_BYTES * (len(wanted) - 1)
            if await self._room_for(room, wanted[0][1].mount.name):
                return await self._fetch_into(room, wanted)
            told = []
            for one in wanted if len(wanted) > 1 else ():  # for some of them there may be room
                room = sum(self._length(one[1], index) for index in one[2])
                fits = await self._room_for(room, one[1].mount.name)
                told += await self._fetch_into(room, [one]) if fits else [Brought()]
            return told or [Brought()]
        finally:
            self._memory.release(size)

    async def _fetch_into(self, room: int, wanted: list[tuple[int, FileRef, list[int]]]) -> list[Brought]:
        self._promised += room
        try:
            return await self._bringing.bring([(ref, missing) for _, ref, missing in wanted])
        finally:
            self._promised -= room

    async def _room_for(self, size: int, mount: str) -> bool:
        """Whether there is room beside what others are fetching, which may be counted twice for a moment:
        on its way and there already. Then it waits for them."""
        pages = self._cache.pages
        while not pages.has_room(self._promised + size, group=mount):
            if not self._promised or not pages.has_room(size, group=mount):
                return False
            await asyncio.sleep(_ROOM_S)
        return True

    def _filled_since(self, batch: Batch, group: list[Run]) -> list[list[int]]:
        """On a disk thread: pages filled since the job began; older ones are dropped where it insists."""
        return [self._filled_of(batch, run) for run in group]

    def _filled_of(self, batch: Batch, run: Run) -> list[int]:
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
