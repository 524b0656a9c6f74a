"""A range of one version of a file as the body of an answer: from pages here, from a fill, from the owner."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from kara_cache.errors import CacheError, PageCorrupt, StaleVersion
from kara_cache.stripe import STRIPE_BYTES
from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.owner_reads import OwnerReads
from kara_worker.alluxio.owners import Owners
from kara_worker.alluxio.verified_pages import VerifiedPages
from kara_worker.data_port.verified_read import read_verified_copy
from kara_worker.file_facts import FileFacts
from kara_worker.http.output import PageSlice
from kara_worker.http.request import Request
from kara_worker.metrics import WorkerMetrics
from kara_worker.page_cache import CachedPart, FileRef, FillPart, PageCache

Item = bytes | memoryview | PageSlice
_WINDOW_BYTES = 8 << 20  # fetched while the one before it is sent; the cache's own runs are as long
_FAST_PAGES = 8  # compared within the event loop at most: 0.1 ms each
_CHUNK_BYTES = 256 << 10
_FILL_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What of a file goes out, and under which head."""

    start: int
    stop: int
    status: int = 200
    headers: tuple[str, ...] = ()
    exact: bool = False  # announce the length also while bytes are still to come from a store


class FileBytes:
    """Event loop only. Every byte was compared with the checksum of its fill before it leaves."""

    def __init__(
        self,
        cache: PageCache,
        facts: FileFacts,
        owners: Owners,
        metrics: WorkerMetrics,
        *,
        owner_reads: OwnerReads | None,
    ) -> None:
        self._cache = cache
        self._facts = facts
        self._owners = owners
        self._metrics = metrics
        self._owner_reads = owner_reads
        self._verified = VerifiedPages(cache.page_bytes)

    async def file(self, path: str) -> FileInfo:
        """The file as it is now, by its mount's freshness. IsADirectoryError for a directory."""
        info = await self._facts.info(path)
        if info.is_dir:
            raise IsADirectoryError(f"{path} is a directory")
        return info

    def at_hand(self, info: FileInfo, start: int, stop: int) -> list[bytes | PageSlice] | None:
        """All of the range, if it can be sent at once; None otherwise. Counted as hits when given."""
        ref = self._ref(info)
        size = self._cache.page_bytes
        if start >= stop or (stop - 1) // size - start // size >= _FAST_PAGES:
            return None
        pages = self._cache.peek(ref, start, stop)
        if pages is None:
            return None
        items = []
        try:
            for page in pages:
                base = page.header.page.index * size
                first, last = max(start - base, 0), min(stop - base, page.header.length)
                items.append(self._verified.at_hand(page, first, last))
        except (BlockingIOError, PageCorrupt):
            return None
        self._metrics.page_hits += len(pages)
        self._metrics.served[ref.mount.name].cache_bytes += stop - start
        return items

    async def send(self, request: Request, path: str, plan: Callable[[FileInfo], Answer]) -> None:
        """Answers with what `plan` chooses of the file as it is now.

        Errors before the first byte raise; later ones end the connection. Without `exact` an answer that
        needs a store is chunked, so that no client can take a part of it for the whole.
        """
        info = await self.file(path)
        try:
            await self._send(request, info, plan(info))
        except StaleVersion:
            if request.started:
                raise
            self._facts.forget(path)  # replaced since it was looked at
            info = await self.file(path)
            await self._send(request, info, plan(info))

    async def _send(self, request: Request, info: FileInfo, answer: Answer) -> None:
        size = answer.stop - answer.start
        if request.method == "HEAD" or size <= 0:
            await request.start(length=max(0, size), headers=answer.headers, status=answer.status)
            return
        body = self._body(info, answer.start, answer.stop)
        try:
            items: list[Item] | None = await anext(body)
            assert items is not None
            length = size if answer.exact or _length(items) == size else None
            await request.start(length=length, headers=answer.headers, status=answer.status)
            while items is not None:
                await _write(request, items, chunked=length is None)
                items = await anext(body, None)
        finally:
            await body.aclose()
        if length is None:
            await request.finish()

    async def read(self, info: FileInfo, start: int, stop: int) -> bytes:
        """The range in memory: for the few small answers that are made of file content."""
        parts = bytearray()
        async for items in self._body(info, start, stop):
            for item in items:
                parts += _in_memory(item)
        return bytes(parts)

    async def _body(self, info: FileInfo, start: int, stop: int) -> AsyncGenerator[list[Item], None]:
        """The range in order; the next window is on its way while one is sent."""
        windows = list(_windows(start, stop))
        ahead: asyncio.Task[memoryview] | None = None
        try:
            for number, (first, last) in enumerate(windows):
                current, ahead = ahead, None
                if number + 1 < len(windows) and not self._is_ours(info, windows[number + 1][0]):
                    ahead = self._ask_owner(info, *windows[number + 1])
                if self._is_ours(info, first):
                    async for items in self._local(info, first, last, keep=True):
                        yield items
                    continue
                if current is None:
                    current = self._ask_owner(info, first, last)
                async for items in self._remote(info, first, last, current):
                    yield items
        finally:
            if ahead is not None:
                ahead.cancel()

    def _is_ours(self, info: FileInfo, start: int) -> bool:
        if self._owner_reads is None:
            return True
        mount, _ = self._cache.stores.locate(info.path)
        return self._owners.ours(info.path, start // STRIPE_BYTES, mount.replicas)

    def _ask_owner(self, info: FileInfo, start: int, stop: int) -> asyncio.Task[memoryview]:
        assert self._owner_reads is not None
        return asyncio.get_running_loop().create_task(self._owner_reads.read(info, start, stop))

    async def _remote(
        self, info: FileInfo, start: int, stop: int, asked: asyncio.Task[memoryview]
    ) -> AsyncIterator[list[Item]]:
        try:
            data = await asked
        except StaleVersion:
            raise
        except CacheError:
            # nobody who keeps it answers: read it through, without a copy of what is another's
            async for items in self._local(info, start, stop, keep=False):
                yield items
            return
        self._metrics.served[self._ref(info).mount.name].store_bytes += len(data)
        yield [data]

    async def _local(self, info: FileInfo, start: int, stop: int, *, keep: bool) -> AsyncIterator[list[Item]]:
        hits = self.at_hand(info, start, stop)
        if hits is not None:
            yield list(hits)
            return
        ref = self._ref(info)
        parts = await self._cache.parts(ref, start, stop, keep=keep)
        for part in parts:
            if isinstance(part, CachedPart):
                try:
                    item = await self._compared(part)
                except PageCorrupt:
                    part = await self._refetched(ref, part)
                else:
                    self._metrics.served[ref.mount.name].cache_bytes += part.stop - part.start
                    yield [item]
                    continue
            async for view in filling(part):
                self._metrics.served[ref.mount.name].store_bytes += len(view)
                yield [view]

    async def _compared(self, part: CachedPart) -> bytes | PageSlice:
        """The part's bytes, read in a thread where they are not in memory."""
        page, base = part.stored, part.stored.header.page.index * self._cache.page_bytes
        first, last = part.start - base, part.stop - base
        try:
            return self._verified.at_hand(page, first, last)
        except BlockingIOError:
            data = await self._cache.run_on_disk(read_verified_copy, page, first, last)
        return data

    async def _refetched(self, ref: FileRef, part: CachedPart) -> FillPart:
        """Drops a page whose bytes are wrong and loads it again."""
        await self._cache.check(ref, part.start, part.stop)
        (again,) = await self._cache.parts(ref, part.start, part.stop)
        if isinstance(again, CachedPart):  # the disk lied once and not twice: trust neither answer
            raise PageCorrupt(f"{ref.path}: page at {part.start} reads differently each time")
        return again

    def _ref(self, info: FileInfo) -> FileRef:
        return self._cache.ref(info.path, info.version, info.size)


async def filling(part: FillPart) -> AsyncIterator[memoryview]:
    """Bytes as they arrive. The fill's error is raised, and the last byte only comes when all proved right:
    a body that turns out to be wrong must not have been sent whole."""
    fill, at = part.fill, part.start
    while at < part.stop:
        if fill.complete:
            await fill.wait_complete(0.0)  # raises what the fill failed with
            limit = part.stop
        else:
            limit = min(fill.valid_until, part.stop - 1)
        if limit > at:
            end = min(limit, at + _CHUNK_BYTES)
            yield fill.view(at, end)
            at = end
        elif fill.valid_until >= part.stop - 1:
            await fill.wait_complete(_FILL_WAIT_S)
        else:
            await fill.wait_beyond(at, _FILL_WAIT_S)


def _windows(start: int, stop: int) -> Iterable[tuple[int, int]]:
    """Cut at multiples of the window, so that none lies in two stripes or cuts a page of the next."""
    at = start
    while at < stop:
        end = min(stop, at - at % _WINDOW_BYTES + _WINDOW_BYTES)
        yield at, end
        at = end


async def _write(request: Request, items: list[Item], *, chunked: bool) -> None:
    if not chunked:
        await request.write(*items)
        return
    await request.write(b"%x\r\n" % _length(items), *items, b"\r\n")


def _length(items: Iterable[Item]) -> int:
    return sum(item.count if isinstance(item, PageSlice) else len(item) for item in items)


def _in_memory(item: Item) -> bytes:
    if isinstance(item, PageSlice):
        return os.pread(item.page.fd, item.count, item.offset)
    return bytes(item)
