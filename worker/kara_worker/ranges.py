"""Many ranges in one request: what is in memory goes out together, the rest as each arrives."""

from __future__ import annotations

import asyncio
import json
import mmap
from collections.abc import Sequence

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_cache.page import PageId
from kara_cache.wire import RANGE_FRAME, FileRange, RangeFile, encode_error
from kara_worker.http_request import Request
from kara_worker.metrics import WorkerMetrics
from kara_worker.page_cache import CachedPart, FileRef, PageCache
from kara_worker.page_store import StoredPage
from kara_worker.reads import SIGN_OF_LIFE_S, Reads
from kara_worker.verified_read import read_verified, read_verified_copy

_GATHER_BYTES = 256 << 10  # frames are joined up to this size: one send for many; stays in the CPU's cache
_YIELD_EVERY = 128  # ranges between two turns of the event loop, so that other readers are not kept waiting
_FRAME_BYTES = RANGE_FRAME.size
_PARALLEL = 16  # ranges of one request that may wait for disk or store at a time

FoundPages = dict[tuple[bytes, int], StoredPage]
"""Pages that one request has found open, by file and index."""


class Ranges:
    """Event loop only. Frames come in any order, each range exactly once."""

    def __init__(self, cache: PageCache, reads: Reads, metrics: WorkerMetrics) -> None:
        self._cache = cache
        self._reads = reads
        self._metrics = metrics
        self._page_bytes = cache.page_bytes
        self._scratch = memoryview(mmap.mmap(-1, cache.page_bytes))
        self._gathers: list[memoryview] = []  # one for each request that was under way at the same time

    async def respond(
        self, request: Request, files: Sequence[FileRef | Exception], ranges: Sequence[FileRange]
    ) -> None:
        await request.start(length=None)
        memory = self._gathers.pop() if self._gathers else memoryview(mmap.mmap(-1, _GATHER_BYTES))
        try:
            later = await self._respond_hits(request, files, ranges, memory)
        finally:
            self._gathers.append(memory)
        if later:
            await self._respond_later(request, files, ranges, later)
        await request.finish()

    async def _respond_hits(
        self,
        request: Request,
        files: Sequence[FileRef | Exception],
        ranges: Sequence[FileRange],
        memory: memoryview,
    ) -> list[int]:
        """Sends what is in memory, joined in `memory`; the indices of the others."""
        later: list[int] = []
        used = 0
        found: FoundPages = {}
        for index, (number, start, length) in enumerate(ranges):
            file = files[number]
            if isinstance(file, Exception):
                await request.write_chunk(_error_frame(index, file))
                continue
            stop = min(start + length, file.size)
            size = _FRAME_BYTES + max(0, stop - start)
            if used + size > _GATHER_BYTES and used:
                await request.write_chunk(memory[:used])
                used = 0
            frame = memory[used : used + size] if size <= _GATHER_BYTES else memoryview(bytearray(size))
            if not self._fill_hit(frame, index, file, start, stop, found):
                later.append(index)
            elif size <= _GATHER_BYTES:
                used += size
            else:
                await request.write_chunk(frame)
            if index % _YIELD_EVERY == _YIELD_EVERY - 1:
                await asyncio.sleep(0)
        if used:
            await request.write_chunk(memory[:used])
        return later

    def _fill_hit(
        self, frame: memoryview, index: int, ref: FileRef, start: int, stop: int, found: FoundPages
    ) -> bool:
        """Writes the range's frame if every page is open and in memory."""
        if start >= stop:
            RANGE_FRAME.pack_into(frame, 0, index, 0, 0, checksum(b""))
            return True
        page_bytes = self._page_bytes
        first, last = start // page_bytes, (stop - 1) // page_bytes
        data = frame[_FRAME_BYTES:]
        try:
            if first == last:
                page = found.get((ref.file_id, first)) or self._find(ref, first, found)
                if page is None:
                    return False
                base = first * page_bytes
                data[:] = read_verified(page, start - base, stop - base, self._scratch, wait=False)
            elif not self._fill_across(data, ref, start, stop, found):
                return False
        except (BlockingIOError, PageCorrupt):
            return False
        RANGE_FRAME.pack_into(frame, 0, index, 0, stop - start, checksum(data))
        self._metrics.page_hits += 1 + last - first
        self._metrics.served[ref.mount.name].cache_bytes += stop - start
        return True

    def _fill_across(self, data: memoryview, ref: FileRef, start: int, stop: int, found: FoundPages) -> bool:
        at = start
        while at < stop:
            number, offset = divmod(at, self._page_bytes)
            page = self._find(ref, number, found)
            if page is None:
                return False
            count = min(stop - at, page.header.length - offset)
            part = read_verified(page, offset, offset + count, self._scratch, wait=False)
            data[at - start : at - start + count] = part
            at += count
        return True

    def _find(self, ref: FileRef, number: int, found: FoundPages) -> StoredPage | None:
        """The page if it is open; one request is one use of it, however many of its ranges it asks for."""
        key = ref.file_id, number
        page = found.get(key)
        if page is None:
            page = self._cache.pages.peek(PageId(*key))
            if page is not None:
                found[key] = page
        return page

    async def _respond_later(
        self,
        request: Request,
        files: Sequence[FileRef | Exception],
        ranges: Sequence[FileRange],
        indices: Sequence[int],
    ) -> None:
        turns = asyncio.Semaphore(_PARALLEL)

        async def load(index: int) -> bytes:
            async with turns:
                ref, item = files[ranges[index].file], ranges[index]
                assert isinstance(ref, FileRef)
                try:
                    data = await self.load(ref, item.start, min(item.start + item.length, ref.size))
                except Exception as exc:  # noqa: BLE001 - one bad range is an answer to that range alone
                    return _error_frame(index, exc)
                return RANGE_FRAME.pack(index, 0, len(data), checksum(data)) + data

        tasks = {asyncio.ensure_future(load(index)) for index in indices}
        try:
            while tasks:
                done, tasks = await asyncio.wait(
                    tasks, timeout=SIGN_OF_LIFE_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    await request.write_chunk(task.result())
                if not done:
                    await request.write_chunk(SIGN_OF_LIFE)
        finally:
            for task in tasks:
                task.cancel()

    async def load(self, ref: FileRef, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file, from the store where they are not here."""
        out = bytearray()
        for part in await self._cache.parts(ref, start, stop):
            if isinstance(part, CachedPart):
                base = part.stored.header.page.index * self._page_bytes
                try:
                    out += await self._cache.run_on_disk(
                        read_verified_copy, part.stored, part.start - base, part.stop - base
                    )
                except PageCorrupt:
                    part = await self._reads.refetch(ref, part)
                else:
                    self._metrics.served[ref.mount.name].cache_bytes += part.stop - part.start
                    continue
            while not await part.fill.wait_complete(SIGN_OF_LIFE_S):
                pass
            out += part.fill.view(part.start, part.stop)
            self._metrics.served[ref.mount.name].store_bytes += part.stop - part.start
        return bytes(out)


SIGN_OF_LIFE = RANGE_FRAME.pack(0xFFFFFFFF, 2, 0, 0)  # status 2: nothing yet, still working


def _error_frame(index: int, error: BaseException) -> bytes:
    body = json.dumps(encode_error(error)[1]).encode()
    return RANGE_FRAME.pack(index, 1, len(body), checksum(body)) + body


def refs(cache: PageCache, files: Sequence[RangeFile]) -> list[FileRef | Exception]:
    """One reference for each file; a bad one is an error for its ranges, not for the request."""
    found: list[FileRef | Exception] = []
    for file in files:
        try:
            found.append(cache.ref(file.path, file.version, file.size))
        except (OSError, ValueError) as exc:  # noqa: PERF203 - few files, many ranges
            found.append(exc)
    return found
