"""Get-or-load: pages on SSD first, then the store, one request for a page however many ask."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from kara_cache.errors import CacheError, KaraError, StaleVersion
from kara_cache.mount import IMMUTABLE, Mount, is_below
from kara_cache.page import PageHeader, PageId, file_id
from kara_worker.byte_budget import ByteBudget
from kara_worker.fill import Fill
from kara_worker.fill_memory import FillMemory
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores
from kara_worker.pages.page_store import PageStore, StoredPage
from kara_worker.store_lanes import StoreLane, StoreLanes

V = TypeVar("V")
RUN_BYTES = 8 << 20  # neighbouring missing pages fetched by one request; precedent: 8 MiB parts of S3 clients
_BUDGET_WAIT_S = 20.0
_AT_ONCE_BYTES = 256 << 10  # a fill of this size is told of once, when it is complete
_KEEP_BYTES = 64 << 20  # of memory for fills, at most: what a read of 64 MiB has on its way


@dataclass(frozen=True, slots=True)
class FileRef:
    """One version of one file as a request names it."""

    path: str
    mount: Mount
    relative: str
    version: str
    size: int
    file_id: bytes

    @property
    def keepable(self) -> bool:
        """Without a version nothing tells old pages from new, unless the operator says nothing changes."""
        return bool(self.version) or self.mount.freshness == IMMUTABLE


@dataclass(frozen=True, slots=True)
class CachedPart:
    """Bytes [start, stop) of the file lie in an open page."""

    stored: StoredPage
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class FillPart:
    """Bytes [start, stop) of the file, within one page, are on their way from the store."""

    fill: Fill
    start: int
    stop: int


Part = CachedPart | FillPart


class PageCache:
    """Event loop only; disk and store work runs in its own threads."""

    def __init__(
        self,
        pages: PageStore,
        stores: MountedStores,
        metrics: WorkerMetrics,
        *,
        store_threads: int,
        fill_memory_bytes: int,
        write_queue_bytes: int,
    ) -> None:
        self.pages = pages
        self.stores = stores
        self.page_bytes = pages.page_bytes
        self.metrics = metrics
        self._fills: dict[PageId, Fill] = {}
        self._memory = ByteBudget(fill_memory_bytes, what="fill memory")
        self._areas = FillMemory(min(_KEEP_BYTES, fill_memory_bytes // 8))
        self._write_queue_bytes = write_queue_bytes
        self._queued_bytes = 0
        self._tasks: dict[asyncio.Task[None], tuple[str, ...]] = {}  # running fills, with their paths
        self._lanes = StoreLanes(store_threads, self._memory.limit)
        self._disk_threads = ThreadPoolExecutor(2, thread_name_prefix="disk")
        self.before_put: Callable[[bytes, str], None] = _nothing  # file id and path; in any thread

    def ref(self, path: str, version: str, size: int) -> FileRef:
        """Raises ValueError for a hostile path, FileNotFoundError for an unknown mount."""
        mount, relative = self.stores.locate(path)
        if size < 0:
            raise ValueError(f"size {size} of {path}")
        normal = f"/{mount.name}/{relative}"
        return FileRef(normal, mount, relative, version, size, file_id(normal, version, size))

    def peek(self, ref: FileRef, start: int, stop: int) -> list[StoredPage] | None:
        """The open pages under [start, stop), if all are: no system call, nothing counted."""
        peek, identity = self.pages.peek, ref.file_id
        first, last = start // self.page_bytes, (stop - 1) // self.page_bytes
        if first == last:
            page = peek(PageId(identity, first))
            return None if page is None else [page]
        found = []
        for index in range(first, last + 1):
            page = peek(PageId(identity, index))
            if page is None:
                return None
            found.append(page)
        return found

    async def parts(self, ref: FileRef, start: int, stop: int, *, keep: bool = True) -> list[Part]:
        """[start, stop) as parts in order, one for each page; missing pages have begun to load."""
        first, last = start // self.page_bytes, (stop - 1) // self.page_bytes
        stored = await self._open_stored(ref, range(first, last + 1))
        # nothing below waits: between the look-up and the start of a fill nobody else can start one
        self._start_missing(ref, [i for i in range(first, last + 1) if i not in stored], keep)
        parts: list[Part] = []
        for index in range(first, last + 1):
            at, end = max(start, index * self.page_bytes), min(stop, (index + 1) * self.page_bytes)
            if index in stored:
                parts.append(CachedPart(stored[index], at, end))
            else:
                fill = self._fills[PageId(ref.file_id, index)]
                fill.watch()
                parts.append(FillPart(fill, at, end))
        self.metrics.page_hits += len(stored)
        return parts

    async def _open_stored(self, ref: FileRef, indices: range) -> dict[int, StoredPage]:
        """Every page of the run that is on SSD, open.

        Opening may wait for a disk, and meanwhile other pages may have arrived: the last pass waits
        for nothing, so what it does not find is missing at this very moment.
        """
        found: dict[int, StoredPage] = {}
        tried: set[PageId] = set()
        while True:
            closed: list[PageId] = []
            for index in indices:
                page = PageId(ref.file_id, index)
                if index in found or page in tried:
                    continue
                stored = self.pages.peek(page)
                if stored is not None:
                    found[index] = stored
                elif page not in self._fills and self.pages.contains(page):
                    closed.append(page)
            if not closed:
                return found
            tried.update(closed)
            for opened in await self.run_on_disk(self._get_all, closed):
                found[opened.header.page.index] = opened

    def _get_all(self, pages: Sequence[PageId]) -> list[StoredPage]:
        return [stored for page in pages if (stored := self.pages.get(page)) is not None]

    def _start_missing(self, ref: FileRef, indices: list[int], keep: bool) -> None:
        run: list[int] = []
        for index in indices:
            fill = self._fills.get(PageId(ref.file_id, index))
            if fill is not None and fill.error is None:
                fill.keep = fill.keep or keep
                self.metrics.page_joins += 1
                continue
            self.metrics.page_misses += 1
            if run and (
                index != run[-1] + 1 or (len(run) + 1) * self.page_bytes > max(RUN_BYTES, self.page_bytes)
            ):
                self._start_fill(ref, run, keep)
                run = []
            run.append(index)
        if run:
            self._start_fill(ref, run, keep)

    def _start_fill(self, ref: FileRef, run: list[int], keep: bool) -> None:
        fill, lane = self.enter(ref, run, keep=keep), self._lanes.of(ref.mount.name)
        size = fill.stop - fill.start
        if asked := self._take_room(lane, size):  # the store is asked while the reader's request goes on
            self._ask(ref, fill, lane)
        fill.task = self.own((ref,), self._fill(ref, fill, lane, asked=asked))

    def _take_room(self, lane: StoreLane, size: int) -> bool:
        if not lane.memory.take(size):
            return False
        if self._memory.take(size):
            return True
        lane.memory.release(size)
        return False

    def filling_page(self, page: PageId) -> Fill | None:
        """The fill that brings the page, unless it has failed."""
        fill = self._fills.get(page)
        return fill if fill is not None and fill.error is None else None

    def enter(self, ref: FileRef, run: Sequence[int], *, keep: bool) -> Fill:
        """A fill for neighbouring pages, which from now on are on their way; `leave` is the caller's duty."""
        start = run[0] * self.page_bytes
        stop = min((run[-1] + 1) * self.page_bytes, ref.size)
        fill = Fill(run[0], start, stop, keep=keep)
        for index in run:
            self._fills[PageId(ref.file_id, index)] = fill
        return fill

    def leave(self, ref: FileRef, fill: Fill) -> None:
        """Its pages have reached the page store, or never will."""
        for index in range(fill.first_page, -(-fill.stop // self.page_bytes)):
            page = PageId(ref.file_id, index)
            if self._fills.get(page) is fill:
                del self._fills[page]

    def own(self, refs: Sequence[FileRef], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs the work of fills; a `free` of one of the files waits for it, and so does `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = tuple(ref.path for ref in refs)
        task.add_done_callback(self._tasks.pop)
        return task

    async def _fill(self, ref: FileRef, fill: Fill, lane: StoreLane, *, asked: bool) -> None:
        size = fill.stop - fill.start
        held = 2 if asked else 0  # budgets
        try:
            if not asked:
                await lane.memory.acquire(size, _BUDGET_WAIT_S)
                held = 1
                await self._memory.acquire(size, _BUDGET_WAIT_S)
                held = 2
                self._ask(ref, fill, lane)
            await fill.wait_end()
            await asyncio.sleep(0)  # who waits for it is answered before it is written
        except Exception as exc:  # noqa: BLE001 - a task's top: whoever waits gets the error
            self._failed(ref, fill, exc)
        try:
            if fill.error is None and fill.keep and ref.keepable:
                await self._write(ref, fill)
        finally:
            self.leave(ref, fill)
            if held:
                lane.memory.release(size)
            if held == 2:
                self._memory.release(size)

    def _ask(self, ref: FileRef, fill: Fill, lane: StoreLane) -> None:
        try:
            lane.threads.submit(self._load_and_tell, ref, fill, asyncio.get_running_loop())
        except RuntimeError as exc:  # this cache has been closed
            self._failed(ref, fill, exc)

    def _load_and_tell(self, ref: FileRef, fill: Fill, loop: asyncio.AbstractEventLoop) -> None:
        """In a store thread. The future of an executor takes two more turns of the event loop."""
        try:
            headers = self._load(ref, fill)
        except Exception as exc:  # noqa: BLE001 - as for a task's top
            told: tuple[Any, ...] = self._failed, ref, fill, exc
        else:
            told = self._filled, fill, headers
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(*told)

    def _filled(self, fill: Fill, headers: Sequence[PageHeader]) -> None:
        self.metrics.fills += 1
        fill.finish(headers)

    def _failed(self, ref: FileRef, fill: Fill, exc: Exception) -> None:
        self.metrics.count_fill_error(exc)
        fill.fail(as_answer(exc, ref))

    def _load(self, ref: FileRef, fill: Fill) -> list[PageHeader]:
        """In a store thread: the bytes, then the sums, never taken of anything but the store's bytes."""
        view = self._areas.take(fill.stop - fill.start)
        fill.attach(view)
        progress = fill.progress_from_thread if len(view) > _AT_ONCE_BYTES else None
        got = self.stores.read_into(ref.mount, ref.relative, fill.start, view, ref.version, progress)
        if got != len(view):
            raise StaleVersion(
                f"{ref.path}: {got} bytes at {fill.start}, expected {len(view)} of a file of {ref.size}; "
                "it has changed"
            )
        now, size = time.time_ns(), self.page_bytes
        return [
            PageHeader.of(
                PageId(ref.file_id, (fill.start + at) // size),
                view[at : at + size],
                page_bytes=size,
                created_ns=now,
                path=ref.path,
            )
            for at in range(0, len(view), size)
        ]

    async def _write(self, ref: FileRef, fill: Fill) -> None:
        """Readers are served from memory until a page is on SSD, so that no page is fetched twice."""
        size = fill.stop - fill.start
        if self._queued_bytes + size > self._write_queue_bytes and self._queued_bytes:
            self.metrics.count_rejection("queue_full", len(fill.headers))
            return
        self._queued_bytes += size
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk_threads, self.put_all, ref, fill, fill.headers)
        finally:
            self._queued_bytes -= size

    def put_all(self, ref: FileRef, fill: Fill, headers: Sequence[PageHeader]) -> None:
        """In a thread: the pages of a fill, into the page store."""
        self.before_put(ref.file_id, ref.path)
        for header in headers:
            start = header.page.index * self.page_bytes
            self.pages.put(header, fill.view(start, start + header.length), group=ref.mount.name)

    async def open_pages(self, ref: FileRef, indices: range) -> list[StoredPage]:
        """Those of the pages that are on SSD, in order; starts no fill."""
        last = -(-ref.size // self.page_bytes)
        found = await self._open_stored(ref, range(indices.start, min(indices.stop, last)))
        self.metrics.page_hits += len(found)
        return [found[index] for index in sorted(found)]

    async def free(self, path: str, *, recursive: bool) -> tuple[int, int]:
        """Drops all versions of a file, or of all files below: (pages, bytes).

        Pages on their way are waited for and dropped too: what was read before this call is gone after it.
        """
        mount, relative = self.stores.locate(path)
        normal = f"/{mount.name}/{relative}".rstrip("/")
        running = [
            task
            for task, paths in self._tasks.items()
            if any(path == normal or (recursive and is_below(path, normal)) for path in paths)
        ]
        if running:
            await asyncio.wait(running, timeout=_BUDGET_WAIT_S)
        return await self.run_on_disk(lambda: self.pages.free(normal, recursive=recursive))

    def filling(self, ref: FileRef) -> list[int]:
        """Indices of the file's pages that are on their way from the store."""
        return sorted(page.index for page in self._fills if page.file_id == ref.file_id)

    async def check(self, ref: FileRef, start: int, stop: int) -> tuple[int, int]:
        """Reads and compares the pages under the range: (pages here, pages dropped as wrong)."""
        first, last = start // self.page_bytes, (stop - 1) // self.page_bytes
        loop = asyncio.get_running_loop()
        present = dropped = 0
        for index in range(first, last + 1):
            page = PageId(ref.file_id, index)
            if self.pages.contains(page):
                present += 1
                dropped += not await loop.run_in_executor(self._disk_threads, self.pages.verify, page)
        return present, dropped

    async def run_on_disk(self, work: Callable[..., V], *args: Any) -> V:
        """Runs blocking page-store work outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._disk_threads, work, *args)

    @property
    def loading(self) -> int:
        """Fills that run, each a request to a store."""
        return len(self._tasks)

    async def close(self, drain_s: float) -> None:
        """Waits for fills and their writes, then stops the threads."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for task in self._tasks:
            task.cancel()
        self._lanes.shutdown()
        self._disk_threads.shutdown(wait=True)


def _nothing(file_id: bytes, path: str) -> None:
    pass


def as_answer(exc: Exception, ref: FileRef) -> Exception:
    """What readers are told: answers and errors of ours as they are, a bug as a failure of the cache."""
    if isinstance(exc, (KaraError, OSError, ValueError)):
        return exc
    return CacheError(f"{ref.path}: the fill failed: {type(exc).__name__}")
