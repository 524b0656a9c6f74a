"""Pages that may go out unread, because they were compared with their sums a moment ago.

Native clients verify what they get. The clients of the dialect cannot, so the worker does it for them:
a page is read and compared once, and for a while after that sendfile may take it from the memory that was
compared. Once it has left that memory it is compared again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kara_cache.page import PageId
from kara_worker.data_port.verified_read import in_memory, read_verified
from kara_worker.http.output import PageSlice
from kara_worker.pages.page_store import StoredPage

_TRUSTED_S = 30.0  # chosen by feel: long for a hot page, short for memory that may fail
_MAX_PAGES = 1 << 17
_COPY_BYTES = 32 << 10  # up to here a read and a send are cheaper than a sendfile


class VerifiedPages:
    """Event loop only, but for `read`."""

    def __init__(self, page_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[PageId, float] = {}
        self._scratch = memoryview(bytearray(page_bytes))

    def at_hand(self, page: StoredPage, start: int, stop: int) -> bytes | PageSlice:
        """Bytes [start, stop) of the page, without waiting for a disk.

        Raises BlockingIOError when they are not in memory, PageCorrupt when they are wrong.
        """
        whole = stop - start == page.header.length and stop - start > _COPY_BYTES
        if whole and self._until.get(page.header.page, 0.0) > self._clock() and in_memory(page):
            return PageSlice(page, page.offset, stop - start)
        data = read_verified(page, start, stop, self._scratch, wait=False)
        if whole:
            self.trust(page)
            return PageSlice(page, page.offset, stop - start)
        return bytes(data)  # the scratch is used again before this is sent

    def trust(self, page: StoredPage) -> None:
        """The page was compared just now."""
        if len(self._until) >= _MAX_PAGES:
            self._until.clear()
        self._until[page.header.page] = self._clock() + _TRUSTED_S
