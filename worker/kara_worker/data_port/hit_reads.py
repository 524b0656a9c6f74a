"""Reads of pages that are open and in memory, answered at once: no task, no wait, few steps.

Everything here is for the request that a worker gets most: a few thousand bytes that it has. Files are
found by the bytes of the request itself; what has to be checked again only now and then (a page's use told
to the eviction policy, a large page's residence) is remembered for a moment; answers of one
round of the event loop leave together.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from time import monotonic
from weakref import ref as weak

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_cache.page import PageId
from kara_cache.read_stages import REST_S
from kara_cache.wire import (
    MAX_READ_BYTES,
    PAGE_HEADER,
    PASS_HEADER,
    PREFIX,
    SOURCE_HEADER,
    STAGES_HEADER,
    SUM_HEADER,
)
from kara_worker.access import AccessControl
from kara_worker.data_port.verified_read import in_memory, read_verified
from kara_worker.hot_paths import SAMPLE
from kara_worker.http.connection import Connection
from kara_worker.http.output import DescriptorMessage, PageSlice, SocketOutput
from kara_worker.metrics import LATENCY_BOUNDS_S, WorkerMetrics
from kara_worker.page_cache import FileRef, PageCache
from kara_worker.pages.page_store import StoredPage

_READ = f"GET {PREFIX}/read?".encode()
_PASS = b"&pass=1"
_PASS_FIELD = f"{PASS_HEADER}: ".encode()
_DISK_FIELD = f"{STAGES_HEADER}: disk=".encode()
_FROM_DISK = b"%b%.6f\r\n\r\n" % (_DISK_FIELD, REST_S)
_MAX_FILES = 65536
_MAX_NEAR = 4096  # pages of one file that are remembered
_MAX_FIELDS = 64  # kinds of header fields that are remembered: one for each program and token
_MOMENT_S = 0.1  # uses of a page within it are one use (correlated references: O'Neil et al., SIGMOD 1993)
_HOT_BYTES = 16 << 10  # larger answers gain little
_HOT_OVERHEAD = 400  # of the objects around one
_MAX_HOT_BYTES = 16 << 20
_MAX_ASKED = 1 << 12  # what comes back only after so many others would not find its answer any more
_COPY_BYTES = 32 << 10  # a part of more is sent at once from where it was read, and not kept for the round


def head_of_hits(page_bytes: int) -> bytes:
    """Of answers that are all from SSD: to be formatted with their length and sums."""
    return (
        "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n"
        f"{PAGE_HEADER}: {page_bytes}\r\n{SOURCE_HEADER}: hit\r\n{SUM_HEADER}: %b\r\n\r\n"
    ).encode()


class KnownFile:
    """One version of a file that was read before."""

    __slots__ = ("near", "query", "ref", "size")

    def __init__(self, ref: FileRef, query: bytes) -> None:
        self.ref = ref
        self.query = query
        self.size = ref.size
        self.near: dict[int, weak[StoredPage]] = {}  # pages that were used lately; alive while open


class _Hot:
    """An answer that is asked for again and again: all of it, or its head where a page follows by sendfile.

    It was verified when it was read, holds for as long as its page is open, and is checked against what
    else an answer needs (the token, the eviction policy's opinion) once in a moment.
    """

    __slots__ = ("answer", "count", "page", "ref", "sliced", "until")

    def __init__(self, page: StoredPage, ref: FileRef, answer: bytes, count: int) -> None:
        self.page = weak(page)
        self.ref = ref
        self.answer = answer
        self.count = count
        self.sliced = len(answer) < count
        self.until = 0.0


class HitReads:
    """Event loop only. A whole page larger than a few blocks goes out by sendfile under the sum of its fill,
    unread by us (the client verifies it); all else is verified here before it is sent."""

    def __init__(
        self, cache: PageCache, access: AccessControl, metrics: WorkerMetrics, sendfile_above: int
    ) -> None:
        """A whole page of more than `sendfile_above` bytes goes out by sendfile."""
        self._sendfile_above = sendfile_above
        self._pages = cache.pages
        self._access = access
        self._metrics = metrics
        self.page_bytes = cache.page_bytes
        # a range cuts at most two pages: its first and its last
        self._scratch = memoryview(mmap.mmap(-1, 2 * cache.page_bytes))
        self._files: dict[bytes, KnownFile] = {}
        self._plain_fields: set[bytes] = set()
        self._hot: dict[bytes, _Hot] = {}  # by request
        self._hot_bytes = 0
        self._asked: set[int] = set()  # hashes of requests that came once
        self._turn = 0  # of the sample of hot paths
        self._answered: list[Connection] = []  # whose answers leave at the end of the round
        self._head = head_of_hits(cache.page_bytes)
        sum_field = f"\r\n{SUM_HEADER}: ".encode()
        self._head_of_own = self._head.replace(sum_field, b"\r\n%bown%b" % (_PASS_FIELD, sum_field))

    def know(self, query: bytes, ref: FileRef) -> None:
        """A read whose query began with these bytes, up to the range, was for this file."""
        if len(self._files) >= _MAX_FILES:
            self._files.clear()
        self._files[_READ + query] = KnownFile(ref, query)

    def file(self, query: bytes) -> KnownFile | None:
        """The file that a read whose query began with these bytes was for."""
        return self._files.get(_READ + query)

    def forget(self) -> None:
        """After the mount table changed."""
        self._files.clear()
        self.forget_answers()

    def forget_answers(self) -> None:
        """After a reader found wrong bytes: they may have gone bad in our memory."""
        self._hot.clear()
        self._hot_bytes = 0

    def try_answer(self, connection: Connection, head: bytes) -> bool:
        """Answers the request; False, and nothing was sent or counted, if it needs the general way."""
        hot = self._hot.get(head)
        if hot is not None and connection.since < hot.until and (page := hot.page()) is not None:
            return self._try_hot(connection, head, hot, page)
        end = head.find(b" HTTP/1.1\r\n")
        at = head.rfind(b"&start=", 0, end)
        file = self._files.get(head[:at])
        if file is None:
            return False
        fields = head[end:]
        if fields not in self._plain_fields and not self.plain(fields):
            return False
        if self._access.tokens_needed and not self._access.granted(connection, head, file.query):
            return False
        start_text, _, length_text = head[at + 7 : end].partition(b"&length=")
        passing = False
        if connection.local and length_text.endswith(_PASS):
            passing, length_text = True, length_text[: -len(_PASS)]
        if not (start_text.isdigit() and length_text.isdigit()):
            return False
        start = int(start_text)
        stop = min(start + min(int(length_text), MAX_READ_BYTES), file.size)
        index = start // self.page_bytes
        first = start - index * self.page_bytes
        if start >= stop:
            return False
        if first + stop - start > self.page_bytes:
            return self._try_pages(connection, file, start, stop)
        page = self.find(file, index, connection.since)
        if page is None:
            return False
        if hot is not None and hot.page() is page:
            hot.until = connection.since + _MOMENT_S
            return self._try_hot(connection, head, hot, page)
        if passing and stop - start <= _COPY_BYTES:
            return self._try_passing(connection, head, file.ref, page, first, stop - start)
        return self._try_page(connection, head, file.ref, page, first, stop - start)

    def plain(self, fields: bytes) -> bool:
        """Whether the header fields ask for nothing but the answer; bodies and ends are the general way's."""
        if fields in self._plain_fields:
            return True
        lower = fields.lower()
        if b"\r\nconnection: close" in lower or b"\r\ncontent-length:" in lower or b"\r\ntransfer-" in lower:
            return False
        if b"\r\ntraceparent:" in lower:  # it may want a span, and no two are alike
            return False
        if len(self._plain_fields) >= _MAX_FIELDS:
            self._plain_fields.clear()
        self._plain_fields.add(fields)
        return True

    def find(self, file: KnownFile, index: int, now: float) -> StoredPage | None:
        """The page if it is open. Its use is told to the store, but not more than once in a moment."""
        known = file.near.get(index)
        if known is not None and (page := known()) is not None and now < page.touch_at:
            return page
        page = self._pages.peek(PageId(file.ref.file_id, index))
        if page is not None:
            page.touch_at = now + _MOMENT_S
            if len(file.near) >= _MAX_NEAR:
                file.near.clear()
            file.near[index] = weak(page)
            self._metrics.hot_paths.seen(file.ref)
        return page

    def _try_page(
        self, connection: Connection, request: bytes, ref: FileRef, page: StoredPage, first: int, count: int
    ) -> bool:
        """Bytes of one page, which is what most requests are for."""
        length, output = page.header.length, connection.output
        if count == length and count > self._sendfile_above:
            if not connection.waited_s and not in_memory(page):
                return self._send_from_disk(connection, request, ref, page)
            answer = _after_disk(page.head or self._keep_head(page), connection.waited_s)
            output.put(answer)
            output.put(PageSlice(page, page.offset, count))
        else:
            try:
                data = read_verified(page, first, first + count, self._scratch, wait=False)
            except BlockingIOError:
                return self._wait_for_disk(connection, request, page, first, count)
            except PageCorrupt:
                return False
            if count == length:
                head = page.head or self._keep_head(page)
            else:
                head = self._head % (count, b"%016x" % checksum(data))
            head = _after_disk(head, connection.waited_s)
            if count > _COPY_BYTES:
                connection.send(head, data)
                self._count(ref, 1, count)
                self._metrics.hot_read.observe(monotonic() - connection.since)
                return True
            answer = b"".join((head, data))
            output.put(answer)
        if (count <= _HOT_BYTES or count == length) and not connection.waited_s:
            self._offer(connection, request, _Hot(page, ref, answer, count))
        self._count(ref, 1, count)
        self._send_soon(connection)
        return True

    def _send_from_disk(self, connection: Connection, request: bytes, ref: FileRef, page: StoredPage) -> bool:
        """The whole page, which is not in memory."""
        count = page.header.length
        if not isinstance(connection.output, SocketOutput):
            return self._wait_for_disk(connection, request, page, 0, count)
        head = (page.head or self._keep_head(page))[:-2] + _FROM_DISK

        def sent() -> None:
            self._count(ref, 1, count)
            self._metrics.hot_read.observe(monotonic() - connection.since)

        connection.send_from_disk(head, page, count, sent)
        return True

    def _wait_for_disk(
        self, connection: Connection, request: bytes, page: StoredPage, first: int, count: int
    ) -> bool:
        """Answers when the disk has delivered. Once: what is gone again by then is the general way's."""
        if connection.waited_s:
            return False
        step = page.header.block_bytes
        start, stop = first - first % step, min(-(-(first + count) // step) * step, page.header.length)
        connection.answer_after_disk(request, page, page.offset + start, stop - start)
        return True

    def _try_passing(
        self, connection: Connection, request: bytes, ref: FileRef, page: StoredPage, first: int, count: int
    ) -> bool:
        """Bytes of one page with its descriptor: a reader on this host needs us no more for it."""
        try:
            data = read_verified(page, first, first + count, self._scratch, wait=False)
        except BlockingIOError:
            return self._wait_for_disk(connection, request, page, first, count)
        except PageCorrupt:
            return False
        place = page.hand_over()
        total = b"%016x" % checksum(data)
        if place is None:  # the sum last: heads that differ in it alone are parsed once (`KnownHeads`)
            answer = b"".join((self._head_of_own % (count, total), data))
        else:
            head = self._head % (count, total)
            answer = b"".join((head[:-2], _PASS_FIELD, b"%d,%d\r\n\r\n" % place, data))
        connection.send(DescriptorMessage(answer, (page,)))
        self._count(ref, 1, count)
        self._metrics.hot_read.observe(monotonic() - connection.since)
        return True

    def _offer(self, connection: Connection, request: bytes, hot: _Hot) -> None:
        """Keeps an answer that was asked for before, in the same words."""
        asked = hash(request)
        if asked not in self._asked:
            if len(self._asked) >= _MAX_ASKED:
                self._asked.clear()
            self._asked.add(asked)
            return
        if self._access.tokens_needed and connection.local:
            return  # who needs no token may not leave an answer for those who do
        self._hot_bytes += len(hot.answer) + len(request) + _HOT_OVERHEAD
        if self._hot_bytes > _MAX_HOT_BYTES:
            self._hot.clear()
            self._hot_bytes = 0
        hot.until = connection.since + _MOMENT_S
        self._hot[request] = hot

    def _try_hot(self, connection: Connection, request: bytes, hot: _Hot, page: StoredPage) -> bool:
        output = connection.output
        if hot.sliced:
            if not connection.waited_s and not in_memory(page):
                return self._send_from_disk(connection, request, hot.ref, page)
            output.put(hot.answer)
            output.put(PageSlice(page, page.offset, hot.count))
        else:
            output.put(hot.answer)
        self._count(hot.ref, 1, hot.count)
        self._send_soon(connection)
        return True

    def _keep_head(self, page: StoredPage) -> bytes:
        page.head = self._head % (page.header.length, b"%016x" % page.header.page_sum)
        return page.head

    def _try_pages(self, connection: Connection, file: KnownFile, start: int, stop: int) -> bool:
        """The same for a range across pages."""
        items: list[memoryview | PageSlice] = []
        sums: list[str] = []
        page_bytes, free, at, now = self.page_bytes, self._scratch, start, connection.since
        try:
            while at < stop:
                index = at // page_bytes
                page = self.find(file, index, now)
                if page is None:
                    return False
                length, base = page.header.length, index * page_bytes
                first, last = at - base, min(stop - base, length)
                if last - first == length:
                    if not in_memory(page):
                        return False
                    items.append(PageSlice(page, page.offset, length))
                    sums.append(f"{page.header.page_sum:016x}")
                else:
                    data = read_verified(page, first, last, free, wait=False)
                    free = free[page_bytes:]
                    items.append(data)
                    sums.append(f"{checksum(data):016x}")
                at = base + last
        except (BlockingIOError, PageCorrupt):
            return False
        connection.send(self._head % (stop - start, ",".join(sums).encode()), *items)
        self._count(file.ref, len(items), stop - start)
        self._metrics.hot_read.observe(monotonic() - now)
        return True

    def _count(self, ref: FileRef, pages: int, count: int) -> None:
        metrics = self._metrics
        metrics.page_hits += pages
        metrics.served[ref.mount.name].cache_bytes += count
        self._turn += 1
        if self._turn == SAMPLE:
            self._turn = 0
            metrics.hot_paths.sampled(ref.path)

    def _send_soon(self, connection: Connection) -> None:
        if not self._answered:
            connection.defer(self._send_all)
        connection.deferred = True
        self._answered.append(connection)

    def _send_all(self) -> None:
        """The answers of one round."""
        answered, self._answered = self._answered, []
        for connection in answered:
            connection.flush()
        now, cell = monotonic(), self._metrics.hot_read
        for connection in answered:
            seconds = now - connection.since
            cell.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
            cell.total_s += seconds


def _after_disk(head: bytes, waited_s: float) -> bytes:
    """The head of an answer with the worker's part of the time, if it was the disk's."""
    return head[:-2] + b"%b%.6f\r\n\r\n" % (_DISK_FIELD, waited_s) if waited_s else head
