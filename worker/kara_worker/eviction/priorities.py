"""Pages that go before others, and pages that go after them: what operators said of paths."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kara_cache.path_rule import Priority
from kara_worker.eviction.base import EvictionPolicy, PageKey
from kara_worker.eviction.lru import LeastRecentlyUsed
from kara_worker.eviction.quotas import Quotas

_ORDER = (Priority.LOW, Priority.MEDIUM, Priority.HIGH)  # in which pages leave
_EXPECTED = 1024  # files that were spoken of and have no page yet: more than puts that run at a time


@dataclass(slots=True)
class _File:
    """A file whose priority is not the usual one."""

    priority: Priority
    pages: dict[PageKey, tuple[int, str]]  # size and group


class Priorities:
    """An `EvictionPolicy` made of three, one for each priority. Victims are of the lowest that has any; a
    page never comes in at the cost of a higher one, and always at the cost of a lower one.

    Pages of the usual priority cost nothing here: only files of another one are remembered.
    """

    def __init__(
        self, medium: EvictionPolicy, make: Callable[[], EvictionPolicy] = LeastRecentlyUsed
    ) -> None:
        """`medium` is for all of which nobody said anything, `make` makes the others."""
        self._levels = {Priority.LOW: make(), Priority.MEDIUM: medium, Priority.HIGH: make()}
        self._medium = medium
        self._files: dict[bytes, _File] = {}
        self._expected: OrderedDict[bytes, Priority] = OrderedDict()  # files without pages, oldest first
        self._low_bytes = 0

    def prefer(self, file_id: bytes, priority: Priority, pages: Iterable[tuple[PageKey, int, str]]) -> None:
        """From now on the file has this priority; `pages` are those that are tracked, with size and group."""
        if self.priority_of(file_id) is priority:
            return
        known = self._files.pop(file_id, None)
        self._expected.pop(file_id, None)
        before = known.priority if known is not None else Priority.MEDIUM
        if known is not None and before is Priority.LOW:
            self._low_bytes -= sum(size for size, _ in known.pages.values())
        if priority is not Priority.MEDIUM:
            self._expect(file_id, priority)
        for page, size, group in pages:
            self._levels[before].forget(page)
            self.track(page, size, group)

    def _expect(self, file_id: bytes, priority: Priority) -> None:
        self._expected[file_id] = priority
        if len(self._expected) > _EXPECTED:
            self._expected.popitem(last=False)

    def priority_of(self, file_id: bytes) -> Priority:
        known = self._files.get(file_id)
        return known.priority if known is not None else self._expected.get(file_id, Priority.MEDIUM)

    def admit(self, page: PageKey, size: int, group: str) -> bool:
        priority = self.priority_of(page[0])
        own = self._levels[priority]
        if priority is not Priority.LOW and self._low_bytes >= size:
            return True
        if priority is Priority.HIGH and len(self._medium):
            return True
        higher = _ORDER[_ORDER.index(priority) + 1 :]
        if not len(own) and any(len(self._levels[other]) for other in higher):
            return False
        return own.admit(page, size, group)

    def track(self, page: PageKey, size: int, group: str) -> None:
        known = self._files.get(page[0])
        if known is None and (priority := self._expected.pop(page[0], None)) is not None:
            known = self._files[page[0]] = _File(priority, {})
        if known is None:
            self._medium.track(page, size, group)
            return
        if page not in known.pages:
            known.pages[page] = (size, group)
            if known.priority is Priority.LOW:
                self._low_bytes += size
        self._levels[known.priority].track(page, size, group)

    def touch(self, page: PageKey) -> None:
        known = self._files.get(page[0])
        if known is None:
            self._medium.touch(page)
        else:
            self._levels[known.priority].touch(page)

    def evict(self) -> PageKey | None:
        for priority in _ORDER:
            if (page := self._levels[priority].evict()) is not None:
                self._left(page)
                return page
        return None

    def evict_from(self, group: str) -> PageKey | None:
        """A victim of the group itself, which has a quota; None where it has none to give."""
        for priority in _ORDER:
            level = self._levels[priority]
            page = level.evict_from(group) if isinstance(level, Quotas) else level.evict()
            if page is not None:
                self._left(page)
                return page
        return None

    def expendable(self) -> bool:
        levels = (self._levels[priority] for priority in _ORDER)
        return next((level for level in levels if len(level)), self._medium).expendable()

    def forget(self, page: PageKey) -> None:
        self._levels[self.priority_of(page[0])].forget(page)
        self._left(page)

    def _left(self, page: PageKey) -> None:
        """The file is remembered while it has pages, and a while longer: others may be on their way."""
        known = self._files.get(page[0])
        if known is None or (gone := known.pages.pop(page, None)) is None:
            return
        if known.priority is Priority.LOW:
            self._low_bytes -= gone[0]
        if not known.pages:
            del self._files[page[0]]
            self._expect(page[0], known.priority)

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))
