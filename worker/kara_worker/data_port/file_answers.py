"""What a file is and what it begins with, in one answer; and the same of many files at once."""

from __future__ import annotations

import asyncio
import json
import mmap
import time
from collections.abc import Awaitable, Callable, Sequence

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_cache.file_answer import BYTES_HEADER, MAX_BYTES, encode_document
from kara_cache.mount import Mount
from kara_cache.page import PageId
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import PAGE_HEADER, RANGE_FRAME, SUM_HEADER, encode_error, encode_info
from kara_worker.data_port.ranges import SIGN_OF_LIFE
from kara_worker.data_port.reads import SIGN_OF_LIFE_S
from kara_worker.data_port.verified_read import in_memory, read_verified, read_verified_copy
from kara_worker.file_facts import FileFacts
from kara_worker.http.output import PageSlice
from kara_worker.http.request import Request
from kara_worker.http.server import Connection
from kara_worker.metrics import WorkerMetrics
from kara_worker.page_cache import FileRef, PageCache
from kara_worker.pages.page_store import StoredPage

_COPY_BYTES = 32 << 10  # up to here one read and one send are cheaper than a probe and a sendfile
_PARALLEL = 16  # files of one request that may wait for a store at a time
_GATHER_BYTES = 256 << 10  # frames are joined up to about this size: one send for many
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%b"

Load = Callable[[FileRef, int, int], Awaitable[bytes]]
Items = list[memoryview | bytes | PageSlice]


class Asked:
    """A question that was answered before, and what of the answer holds as long as the facts do."""

    __slots__ = ("at_most", "document", "info", "length", "mount", "path", "start", "wanted")

    def __init__(self, path: str, mount: Mount, start: int, length: int, at_most: int) -> None:
        self.path = path
        self.mount = mount
        self.start = start
        self.length = length
        self.at_most = at_most
        self.info: FileInfo | None = None
        self.document = b""
        self.wanted: tuple[FileRef, int] | None = None


class FileAnswers:
    """Event loop only. Bytes come along only where the cache has them: who asks what a file is may not
    want to wait until a store has delivered it."""

    def __init__(self, cache: PageCache, facts: FileFacts, metrics: WorkerMetrics, load: Load) -> None:
        """`load` gives bytes [start, stop) of a file, from the store where they are not here."""
        self._cache = cache
        self._facts = facts
        self._metrics = metrics
        self._load = load
        self._scratch = memoryview(mmap.mmap(-1, 2 * cache.page_bytes))
        self._answered = metrics.requests["info", "ok"]  # found once, used for every hit
        self._head = (
            f"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n{BYTES_HEADER}: %d\r\n"
            f"{PAGE_HEADER}: {cache.page_bytes}\r\n{SUM_HEADER}: %b\r\n\r\n%b"
        ).encode()

    def try_known(self, connection: Connection, asked: Asked) -> bool:
        """Answers at once if the facts are known and the bytes are in memory; else nothing was sent."""
        began = time.perf_counter()
        info = self._facts.held(asked.path, asked.mount)
        if info is None:
            return False
        if info is not asked.info:
            asked.info, asked.document = info, encode_document(info)
            asked.wanted = self._wanted(info, asked.start, asked.length, asked.at_most)
        if asked.wanted is None:
            connection.send(_PLAIN % (len(asked.document), asked.document))
        else:
            ref, stop = asked.wanted
            pages = self._cache.peek(ref, asked.start, stop)
            prepared = None if pages is None else self._prepare(pages, asked.start, stop)
            if prepared is None:
                return False
            items, sums = prepared
            connection.send(*self._answer(asked.document, stop - asked.start, sums, items))
            self._count(ref, len(sums), stop - asked.start)
        self._answered.observe(time.perf_counter() - began)
        return True

    async def respond(
        self, request: Request, path: str, start: int, length: int, at_most: int, max_age_s: float
    ) -> None:
        """What the file is now, and bytes [start, start + length) of it if they are on SSD.

        Of a file of more than `at_most` bytes none come along.
        """
        info = await self._facts.info(path, max_age_s)
        found = self._wanted(info, start, length, at_most)
        if found is None or not await self._send_with(request, info, start, *found):
            await request.respond_json(encode_info(info))

    def _wanted(self, info: FileInfo, start: int, length: int, at_most: int) -> tuple[FileRef, int] | None:
        """The file and where the bytes that should come along end; None where none should."""
        stop = min(start + min(length, MAX_BYTES), info.size)
        if info.is_dir or start >= stop or info.size > at_most:
            return None
        ref = self._cache.ref(info.path, info.version, info.size)
        return (ref, stop) if ref.keepable else None

    async def _send_with(self, request: Request, info: FileInfo, start: int, ref: FileRef, stop: int) -> bool:
        """False, with nothing sent, where a page is not here or is wrong: a read will see to it."""
        pages = self._cache.peek(ref, start, stop)
        if pages is None:
            size = self._cache.page_bytes
            indices = range(start // size, (stop - 1) // size + 1)
            pages = await self._cache.run_on_disk(self._open, ref, indices)
            if len(pages) != len(indices):
                return False
        prepared = self._prepare(pages, start, stop)
        if prepared is None:
            prepared = await self._cache.run_on_disk(self._read, pages, start, stop)
        if prepared is None:
            return False
        items, sums = prepared
        request.started = True
        await request.write(*self._answer(encode_document(info), stop - start, sums, items))
        self._count(ref, len(sums), stop - start)
        return True

    def _open(self, ref: FileRef, indices: range) -> list[StoredPage]:
        """In a disk thread: the pages from the first on, up to one that is not here."""
        found: list[StoredPage] = []
        for index in indices:
            stored = self._cache.pages.get(PageId(ref.file_id, index))
            if stored is None:
                break
            found.append(stored)
        return found

    def _prepare(self, pages: Sequence[StoredPage], start: int, stop: int) -> tuple[Items, list[str]] | None:
        """What to send and its sums, without waiting for a disk; None where it would have to."""
        items: Items = []
        sums: list[str] = []
        free, size = self._scratch, self._cache.page_bytes
        try:
            for stored in pages:
                header = stored.header
                base = header.page.index * size
                first, last = max(start - base, 0), min(stop - base, header.length)
                if last - first == header.length and header.length > _COPY_BYTES:
                    if not in_memory(stored):
                        return None
                    items.append(PageSlice(stored, stored.offset, header.length))
                    sums.append(f"{header.page_sum:016x}")
                    continue
                data = read_verified(stored, first, last, free, wait=False)
                free = free[size:]
                items.append(data)
                whole = last - first == header.length
                sums.append(f"{header.page_sum if whole else checksum(data):016x}")
        except (BlockingIOError, PageCorrupt):
            return None
        return items, sums

    def _read(self, pages: Sequence[StoredPage], start: int, stop: int) -> tuple[Items, list[str]] | None:
        """In a disk thread: as `_prepare`, waiting for the disk; None where a page is wrong."""
        items: Items = []
        sums: list[str] = []
        for stored in pages:
            base = stored.header.page.index * self._cache.page_bytes
            first, last = max(start - base, 0), min(stop - base, stored.header.length)
            try:
                data = read_verified_copy(stored, first, last)
            except PageCorrupt:
                return None
            items.append(data)
            sums.append(f"{checksum(data):016x}")
        return items, sums

    def _answer(self, document: bytes, count: int, sums: Sequence[str], items: Items) -> Items:
        head = self._head % (len(document) + count, count, ",".join(sums).encode(), document)
        return [head, *items]

    def _count(self, ref: FileRef, pages: int, count: int) -> None:
        self._metrics.page_hits += pages
        self._metrics.served[ref.mount.name].cache_bytes += count
        self._metrics.hot_paths.read(ref)

    # -- many at once -------------------------------------------------------------------------------

    async def respond_all(
        self, request: Request, paths: Sequence[str | Exception], at_most: int, max_age_s: float
    ) -> None:
        """A frame for each path, in any order: its facts, and all of a file of at most `at_most` bytes.

        Here the bytes are loaded where they are missing: who asks for many wants them all.
        """
        await request.start(length=None)
        turns = asyncio.Semaphore(_PARALLEL)

        async def frame(index: int, path: str | Exception) -> bytes:
            async with turns:
                try:
                    if isinstance(path, Exception):
                        raise path
                    payload = await self._file(path, at_most, max_age_s)
                except Exception as exc:  # noqa: BLE001 - one bad path is an answer to that path alone
                    body = json.dumps(encode_error(exc)[1]).encode()
                    return RANGE_FRAME.pack(index, 1, len(body), checksum(body)) + body
                return RANGE_FRAME.pack(index, 0, len(payload), checksum(payload)) + payload

        tasks = {asyncio.ensure_future(frame(*item)) for item in enumerate(paths)}
        try:
            while tasks:
                done, tasks = await asyncio.wait(
                    tasks, timeout=SIGN_OF_LIFE_S, return_when=asyncio.FIRST_COMPLETED
                )
                gathered = bytearray() if done else bytearray(SIGN_OF_LIFE)
                for task in done:
                    gathered += task.result()
                    if len(gathered) >= _GATHER_BYTES:
                        await request.write_chunk(bytes(gathered))
                        gathered.clear()
                await request.write_chunk(bytes(gathered))
        finally:
            for task in tasks:
                task.cancel()
        await request.finish()

    async def _file(self, path: str, at_most: int, max_age_s: float) -> bytes:
        info = await self._facts.info(path, max_age_s)
        document = encode_document(info)
        found = self._wanted(info, 0, info.size, min(at_most, MAX_BYTES))
        if found is None:
            return document
        ref, stop = found
        pages = self._cache.peek(ref, 0, stop)
        prepared = self._copies(pages, stop) if pages is not None else None
        if prepared is None:
            return document + await self._load(ref, 0, stop)
        self._count(ref, len(prepared), stop)
        return b"".join((document, *prepared))

    def _copies(self, pages: Sequence[StoredPage], stop: int) -> list[bytes] | None:
        """The bytes of pages in memory, as copies: other tasks use the scratch meanwhile."""
        size = self._cache.page_bytes
        try:
            return [
                bytes(read_verified(page, 0, min(size, stop - number * size), self._scratch, wait=False))
                for number, page in enumerate(pages)
            ]
        except (BlockingIOError, PageCorrupt):
            return None
