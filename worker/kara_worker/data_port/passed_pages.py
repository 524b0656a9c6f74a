"""Descriptors of pages for readers on this host, who then need the worker no more for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from time import monotonic

from kara_cache.wire import PREFIX
from kara_worker.data_port.hit_reads import HitReads
from kara_worker.http.output import DescriptorMessage
from kara_worker.http.server import Connection
from kara_worker.metrics import WorkerMetrics
from kara_worker.pages.page_store import StoredPage

MOST = 64  # descriptors in one message; the kernel's own limit is 253 (SCM_MAX_FD)
_PAGES = f"GET {PREFIX}/pages?".encode()


class PassedPages:
    """The quick way: of files that were asked for before, pages that are open. Event loop only."""

    def __init__(self, hits: HitReads, metrics: WorkerMetrics) -> None:
        self._hits = hits
        self._metrics = metrics

    def try_answer(self, connection: Connection, head: bytes) -> bool:
        """Answers the request; False, and nothing was sent or counted, if it needs the general way."""
        if not connection.local or not head.startswith(_PAGES):
            return False
        end = head.find(b" HTTP/1.1\r\n")
        at = head.rfind(b"&first=", 0, end)
        file = self._hits.file(head[len(_PAGES) : at])
        if file is None or not self._hits.plain(head[end:]):
            return False
        first_text, _, rest = head[at + 7 : end].partition(b"&count=")
        count_text, _, flags = rest.partition(b"&")
        if not (first_text.isdigit() and count_text.isdigit()) or flags not in (b"", b"places=1"):
            return False
        first, now = int(first_text), connection.since
        last = -(-file.size // self._hits.page_bytes)
        pages = []
        for index in range(first, min(first + min(int(count_text), MOST), last)):
            page = self._hits.find(file, index, now)
            if page is None:  # it may be on SSD, and has to be opened
                return False
            pages.append(page)
        if not pages:
            return False
        connection.send(answer_with(pages, places=bool(flags)))
        self._metrics.page_hits += len(pages)
        self._metrics.observe("pages", "ok", monotonic() - now)
        return True


def answer_with(pages: Sequence[StoredPage], *, places: bool) -> bytes | DescriptorMessage:
    """The whole answer. `places`: the client knows of files that hold many pages."""
    found = [page.hand_over() for page in pages]
    document: dict[str, object] = {"pages": [page.header.page.index for page in pages]}
    if any(found) and places:
        document["places"] = found
    elif any(found):  # a client that knows only files of one page
        document["pages"], pages = [], ()
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n" % len(body)
    return DescriptorMessage(head + body, pages) if pages else head + body
