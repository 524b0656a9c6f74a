"""Groups that may not take more than their part: each has a policy, and victims, of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from kara_worker.eviction.base import EvictionPolicy, PageKey

_SHARED = ""  # stands for all groups without a quota; no group has this name


class Quotas:
    """An `EvictionPolicy` made of several: one for each group with a quota, one for all others together.

    How much a group may have is the page store's to say: it asks `evict_from` where a group is to give way
    to itself, and `evict` where anybody may: then who has most gives.
    """

    def __init__(self, groups: Iterable[str], make: Callable[[], EvictionPolicy]) -> None:
        self._policies = {group: make() for group in (_SHARED, *groups)}
        self._pages: dict[PageKey, tuple[str, int]] = {}  # -> whose, and size
        self._bytes: Counter[str] = Counter()

    def _whose(self, group: str) -> str:
        return group if group in self._policies else _SHARED

    def admit(self, page: PageKey, size: int, group: str) -> bool:
        return self._policies[self._whose(group)].admit(page, size, group)

    def track(self, page: PageKey, size: int, group: str) -> None:
        if page in self._pages:
            return
        whose = self._whose(group)
        self._pages[page] = (whose, size)
        self._bytes[whose] += size
        self._policies[whose].track(page, size, group)

    def touch(self, page: PageKey) -> None:
        known = self._pages.get(page)
        if known is not None:
            self._policies[known[0]].touch(page)

    def evict(self) -> PageKey | None:
        for whose, _ in self._bytes.most_common():
            if (page := self._evict(whose)) is not None:
                return page
        return None

    def evict_from(self, group: str) -> PageKey | None:
        """A victim of the group itself; None where it has none to give."""
        return self._evict(self._whose(group))

    def _evict(self, whose: str) -> PageKey | None:
        page = self._policies[whose].evict()
        if page is not None:
            self._bytes[whose] -= self._pages.pop(page)[1]
        return page

    def expendable(self) -> bool:
        most = next((whose for whose, count in self._bytes.most_common() if count), _SHARED)
        return self._policies[most].expendable()

    def forget(self, page: PageKey) -> None:
        known = self._pages.pop(page, None)
        if known is not None:
            self._bytes[known[0]] -= known[1]
            self._policies[known[0]].forget(page)

    def __len__(self) -> int:
        return len(self._pages)
