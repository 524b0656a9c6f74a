"""One range of one file the general way: from disk, or streamed while it arrives from a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from time import monotonic

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_cache.wire import PAGE_HEADER, SOURCE_HEADER, STAGES_HEADER, SUM_HEADER
from kara_worker.data_port.hit_reads import head_of_hits
from kara_worker.data_port.served_stages import ServedStages
from kara_worker.data_port.verified_read import in_memory, read_verified_copy
from kara_worker.fill import Fill
from kara_worker.http.output import Output, PageSlice, SocketOutput
from kara_worker.http.request import Request
from kara_worker.metrics import WorkerMetrics
from kara_worker.page_cache import CachedPart, FileRef, FillPart, PageCache, Part

SIGN_OF_LIFE_S = 1.0  # the longest silence of a worker that waits for a store
_RESERVE = 32  # bytes held back while a fill runs, to be sent one by one as signs of life
_CHUNK = 256 << 10
_TOGETHER_BYTES = 256 << 10  # an answer of this size waits for the end of its fills


class Reads:
    """Event loop only. A whole page goes out by sendfile under the sum of its fill, unread by us (the
    client verifies it); a part of a page is verified here and goes out under a sum of its own."""

    def __init__(self, cache: PageCache, metrics: WorkerMetrics) -> None:
        self._cache = cache
        self._metrics = metrics
        self._page_bytes = cache.page_bytes
        self._head = head_of_hits(cache.page_bytes)
        self._filled_head = (
            f"HTTP/1.1 200 OK\r\n{PAGE_HEADER}: {cache.page_bytes}\r\n{SOURCE_HEADER}: fill\r\n"
            f"Trailer: {SUM_HEADER}\r\nTransfer-Encoding: chunked\r\n\r\n"
        ).encode()

    async def respond(self, request: Request, ref: FileRef, start: int, stop: int, *, keep: bool) -> None:
        """The range as a response, from wherever its pages are; errors before the first byte raise."""
        if start >= stop:
            await request.start(length=0, headers=[f"{PAGE_HEADER}: {self._page_bytes}"])
            return
        self._metrics.hot_paths.read(ref)
        stages = ServedStages()
        parts = await self._cache.parts(ref, start, stop, keep=keep)
        stages.opened()
        if all(isinstance(part, CachedPart) for part in parts) and await self._send_cached(
            request, parts, stages
        ):
            self._metrics.served[ref.mount.name].cache_bytes += stop - start
            return
        await self._stream(request, ref, parts, stages)

    async def _send_cached(self, request: Request, parts: Sequence[Part], stages: ServedStages) -> bool:
        """All from SSD, in a thread where the disk is needed; False (nothing sent) when a page is corrupt."""
        output = request.connection.output
        threaded = isinstance(output, SocketOutput)
        items: list[bytes | PageSlice] = []
        sums: list[str] = []
        cold = False
        for part in parts:
            assert isinstance(part, CachedPart)
            stored, header = part.stored, part.stored.header
            base = header.page.index * self._page_bytes
            if threaded and part.stop - part.start == header.length:
                cold = cold or not in_memory(stored)
                items.append(PageSlice(stored, stored.offset, header.length))
                sums.append(f"{header.page_sum:016x}")
                continue
            try:
                data = await self._cache.run_on_disk(
                    read_verified_copy, stored, part.start - base, part.stop - base
                )
            except PageCorrupt:
                return False
            items.append(data)
            sums.append(f"{checksum(data):016x}")
        stages.opened()
        length = parts[-1].stop - parts[0].start
        head = self._head % (length, ",".join(sums).encode())
        if cold:
            stages.sent_from_disk()
        head = head[:-2] + f"{STAGES_HEADER}: {stages}\r\n\r\n".encode()
        request.started = True
        if cold and isinstance(output, SocketOutput):
            await output.send_from_disk(head, *items)
        else:
            await request.write(head, *items)
        return True

    async def _stream(
        self, request: Request, ref: FileRef, parts: Sequence[Part], stages: ServedStages
    ) -> None:
        if parts[-1].stop - parts[0].start <= _TOGETHER_BYTES:
            fills = [part for part in parts if isinstance(part, FillPart)]
            if len(fills) == len(parts):
                await self._send_filled(request, ref, fills, stages)
                return
        sums: list[str] = []
        started = False
        for part in parts:
            async for data in self._bytes_of(request, ref, part, sums, started):
                if not started:
                    await request.start(
                        length=None,
                        headers=[
                            f"{PAGE_HEADER}: {self._page_bytes}",
                            f"{SOURCE_HEADER}: fill",
                            f"Trailer: {SUM_HEADER}",
                        ],
                    )
                    started = True
                await _write_held(request, data)
            if isinstance(part, FillPart):
                stages.filled(part.fill)
        await request.finish([f"{STAGES_HEADER}: {stages}", f"{SUM_HEADER}: {','.join(sums)}"])

    async def _send_filled(
        self, request: Request, ref: FileRef, parts: Sequence[FillPart], stages: ServedStages
    ) -> None:
        """Little goes out at once: its sums exist only now anyway, and the reader wakes up once."""
        for part in parts:
            await until_complete(request, part.fill)
            stages.filled(part.fill)
        output, sums = request.connection.output, []
        request.started = True
        output.put(self._filled_head)
        for part in parts:
            view = part.fill.view(part.start, part.stop)
            _put_chunk(output, view)
            sums.append(f"{part.fill.sum_of(part.start, part.stop):016x}")
        output.put(f"0\r\n{STAGES_HEADER}: {stages}\r\n{SUM_HEADER}: {','.join(sums)}\r\n\r\n".encode())
        self._metrics.served[ref.mount.name].store_bytes += parts[-1].stop - parts[0].start
        if not output.flush():
            await output.drain()

    async def _bytes_of(
        self, request: Request, ref: FileRef, part: Part, sums: list[str], started: bool
    ) -> AsyncIterator[memoryview | bytes]:
        if isinstance(part, CachedPart):
            base = part.stored.header.page.index * self._page_bytes
            try:
                data = await self._cache.run_on_disk(
                    read_verified_copy, part.stored, part.start - base, part.stop - base
                )
            except PageCorrupt:
                part = await self.refetch(ref, part)
            else:
                self._metrics.served[ref.mount.name].cache_bytes += len(data)
                sums.append(f"{checksum(data):016x}")
                yield data
                return
        async for view in self._filling(request, part, started):
            self._metrics.served[ref.mount.name].store_bytes += len(view)
            yield view
        sums.append(f"{part.fill.sum_of(part.start, part.stop):016x}")

    async def refetch(self, ref: FileRef, part: CachedPart) -> FillPart:
        """Drops a page whose bytes are wrong and loads it again."""
        await self._cache.check(ref, part.start, part.stop)
        (again,) = await self._cache.parts(ref, part.start, part.stop)
        if isinstance(again, CachedPart):  # the disk lied once and not twice: trust neither answer
            raise PageCorrupt(f"{ref.path}: page at {part.start} reads differently each time")
        return again

    async def _filling(self, request: Request, part: FillPart, started: bool) -> AsyncIterator[memoryview]:
        """The part's bytes as they arrive; never silent for longer than SIGN_OF_LIFE_S.

        Before the head is out, signs of life are interim responses. Inside a body only body bytes
        may be sent, so the last few are held back until the fill has proved complete and unchanged.
        """
        fill, at = part.fill, part.start
        while at < part.stop:
            limit = (
                part.stop if fill.complete and not fill.error else min(fill.valid_until, part.stop) - _RESERVE
            )
            if limit > at:
                started = True
                yield fill.view(at, min(limit, at + _CHUNK))
                at = min(limit, at + _CHUNK)
                continue
            if await self._changed(fill, at):
                continue
            if not started:
                await request.sign_of_life()
            elif fill.valid_until > at:
                yield fill.view(at, at + 1)
                at += 1

    async def _changed(self, fill: Fill, at: int) -> bool:
        """Waits for news of the fill: more bytes than the reserve, or its end."""
        if fill.complete:
            return await fill.wait_complete(SIGN_OF_LIFE_S)
        before = fill.valid
        await fill.wait_beyond(max(fill.valid_until, at + _RESERVE), SIGN_OF_LIFE_S)
        return fill.complete or fill.valid > before


async def _write_held(request: Request, data: memoryview | bytes) -> None:
    """A chunk of memory that stays as it is until it has been sent. Others have their turn after it."""
    output = request.connection.output
    _put_chunk(output, data)
    if output.flush():
        await asyncio.sleep(0)
    else:
        await output.drain()


def _put_chunk(output: Output, data: memoryview | bytes) -> None:
    """RFC 9112 section 7.1."""
    output.put(b"%x\r\n" % len(data))
    output.put(data)
    output.put(b"\r\n")


async def until_complete(request: Request, fill: Fill) -> None:
    """Waits for the end of a fill, with signs of life. Raises what it failed with."""
    due = monotonic() + SIGN_OF_LIFE_S
    while not await fill.wait_complete(max(0.0, due - monotonic())):
        if monotonic() >= due:
            await request.sign_of_life()
            due = monotonic() + SIGN_OF_LIFE_S
