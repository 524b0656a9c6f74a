"""Least recently used: the plain choice. A scan of more than fits leaves nothing of what was there."""

from __future__ import annotations

from collections import OrderedDict

from kara_worker.eviction.base import PageKey


class LeastRecentlyUsed:
    """Evicts the page whose last use is the longest ago."""

    def __init__(self) -> None:
        self._pages: OrderedDict[PageKey, None] = OrderedDict()  # least recently used first

    def admit(self, page: PageKey, size: int, group: str) -> bool:
        return True

    def track(self, page: PageKey, size: int, group: str) -> None:
        self._pages[page] = None
        self._pages.move_to_end(page)

    def touch(self, page: PageKey) -> None:
        if page in self._pages:
            self._pages.move_to_end(page)

    def evict(self) -> PageKey | None:
        return self._pages.popitem(last=False)[0] if self._pages else None

    def expendable(self) -> bool:
        return bool(self._pages)

    def forget(self, page: PageKey) -> None:
        self._pages.pop(page, None)

    def __len__(self) -> int:
        return len(self._pages)
