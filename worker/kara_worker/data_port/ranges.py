"""Many ranges in one request: what is in memory goes out together, the rest as each arrives."""

from __future__ import annotations

import asyncio
import json
import mmap
from collections.abc import Sequence

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_cache.wire import MAX_JOINED_BYTES, RANGE_FRAME, FileRange, RangeFile, encode_error
from kara_worker.data_port.range_hits import AskedFile, RangeHits
from kara_worker.data_port.reads import SIGN_OF_LIFE_S, Reads
from kara_worker.data_port.verified_read import read_verified_copy
from kara_worker.http.request import Request
from kara_worker.metrics import WorkerMetrics
from kara_worker.page_cache import CachedPart, FileRef, PageCache

_GATHER_BYTES = MAX_JOINED_BYTES + RANGE_FRAME.size  # one send for many ranges; stays in the CPU's cache
_YIELD_EVERY = 128  # ranges between two turns of the event loop, so that other readers are not kept waiting
_FRAME_BYTES = RANGE_FRAME.size
_PARALLEL = 16  # ranges of one request that may wait for disk or store at a time


class Ranges:
    """Event loop only. Frames come in any order, each range exactly once."""

    def __init__(self, cache: PageCache, reads: Reads, metrics: WorkerMetrics) -> None:
        self._cache = cache
        self._reads = reads
        self._metrics = metrics
        self._page_bytes = cache.page_bytes
        self._hits = RangeHits(cache.pages, memoryview(mmap.mmap(-1, cache.page_bytes)))
        self._gathers: list[memoryview] = []  # one for each request that was under way at the same time

    async def respond(
        self,
        request: Request,
        files: Sequence[FileRef | Exception],
        ranges: Sequence[FileRange],
        *,
        joined: bool,
    ) -> None:
        """`joined`: the reader knows frames of several ranges."""
        await request.start(length=None)
        memory = self._gathers.pop() if self._gathers else memoryview(mmap.mmap(-1, _GATHER_BYTES))
        try:
            later = await self._respond_hits(request, files, ranges, memory, joined=joined)
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
        *,
        joined: bool,
    ) -> list[int]:
        """Sends what is in memory, joined in `memory`; the indices of the others."""
        later: list[int] = []
        asked = [None if isinstance(file, Exception) else AskedFile(file) for file in files]
        index, yielded = 0, 0
        while index < len(ranges):
            before = index
            index, used = self._hits.gather(asked, ranges, index, memory, later, joined=joined)
            if used:
                await request.write_chunk(memory[:used])
            elif index == before:
                await self._send_long(request, index, asked[ranges[index].file], ranges[index], later)
                index += 1
            if index - yielded >= _YIELD_EVERY:
                yielded = index
                await asyncio.sleep(0)
        for file in asked:
            if file is not None:
                self._metrics.page_hits += file.sent_pages
                self._metrics.served[file.ref.mount.name].cache_bytes += file.sent_bytes
        return later

    async def _send_long(
        self, request: Request, index: int, file: AskedFile | None, item: FileRange, later: list[int]
    ) -> None:
        """A range that does not fit into a gather."""
        assert file is not None
        length = min(item.length, file.size - item.start)
        frame = memoryview(bytearray(_FRAME_BYTES + length))
        if self._hits.fill(frame, index, file, item.start, length):
            await request.write_chunk(frame)
        else:
            later.append(index)

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
                if isinstance(ref, Exception):
                    return _error_frame(index, ref)
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
