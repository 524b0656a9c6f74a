"""The pages that are open: a bounded number of descriptors, the least recently used ones closed first."""

from __future__ import annotations

import resource
from collections import OrderedDict

from kara_cache.page import PageId
from kara_worker.eviction.base import PageKey
from kara_worker.pages.page_store import StoredPage


class OpenPages:
    """Not thread-safe. Closing is left to the last holder: what a method returns must be let go of
    outside the caller's lock, for that is when descriptors are closed."""

    def __init__(self, limit: int, *, of_files: bool = True) -> None:
        """At most `limit` pages; `of_files` at most half of the descriptors that the process may have."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        bounded = of_files and soft != resource.RLIM_INFINITY
        self.limit = max(1, min(limit, soft // 2) if bounded else limit)
        self._pages: OrderedDict[PageKey, StoredPage] = OrderedDict()  # least recently used first

    def get(self, page: PageId) -> StoredPage | None:
        stored = self._pages.get(page)
        if stored is not None:
            self._pages.move_to_end(page)
        return stored

    def add(self, page: PageId, stored: StoredPage) -> StoredPage | None:
        """Returns one that had to make room."""
        replaced = self._pages.pop(page, None)
        self._pages[page] = stored
        if len(self._pages) > self.limit:
            return self._pages.popitem(last=False)[1]
        return replaced

    def pop(self, page: PageKey) -> StoredPage | None:
        return self._pages.pop(page, None)

    def take_half(self) -> list[StoredPage]:
        """The half that was not used for longest, for when the process has run out of descriptors."""
        return [self._pages.popitem(last=False)[1] for _ in range((len(self._pages) + 1) // 2)]

    def take_all(self) -> list[StoredPage]:
        taken = list(self._pages.values())
        self._pages.clear()
        return taken

    def __len__(self) -> int:
        return len(self._pages)
