"""Pages that stay: of files that somebody pinned or that a load job is bringing in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kara_worker.eviction.base import EvictionPolicy, PageKey


class Sheltered:
    """An `EvictionPolicy` around another, which never hears of the pages of sheltered files.

    Such pages are always admitted and never offered, so when only they are left, `evict` returns None:
    the cache is full of what must stay.
    """

    def __init__(self, inner: EvictionPolicy) -> None:
        self._inner = inner
        self._holds: dict[bytes, int] = {}  # file -> how many want it to stay
        self._pages: dict[bytes, dict[PageKey, tuple[int, str]]] = {}  # file -> page -> size and group
        self._count = 0
        self.bytes = 0  # of the pages that stay
        self.bytes_of: Counter[str] = Counter()  # the same, by group

    @property
    def sheltered(self) -> int:
        """Pages that stay."""
        return self._count

    def shelter(self, file_id: bytes, pages: Iterable[tuple[PageKey, int, str]]) -> None:
        """One more reason to keep a file; `pages` are those that are tracked now, with size and group."""
        self._holds[file_id] = self._holds.get(file_id, 0) + 1
        if self._holds[file_id] > 1:
            return
        held = self._pages[file_id] = {}
        for page, size, group in pages:
            self._inner.forget(page)
            held[page] = (size, group)
        for size, group in held.values():
            self._add(1, size, group)

    def expose(self, file_id: bytes) -> None:
        """One reason less; after the last one its pages are like any others. Unknown files are ignored."""
        holds = self._holds.get(file_id, 0)
        if holds > 1:
            self._holds[file_id] = holds - 1
            return
        self._holds.pop(file_id, None)
        held = self._pages.pop(file_id, {})
        for page, (size, group) in held.items():
            self._add(-1, -size, group)
            self._inner.track(page, size, group)

    def keeps(self, file_id: bytes) -> bool:
        """Whether the policy inside hears nothing of its pages."""
        return file_id in self._holds

    def _add(self, count: int, size: int, group: str) -> None:
        self._count += count
        self.bytes += size
        self.bytes_of[group] += size

    def admit(self, page: PageKey, size: int, group: str) -> bool:
        return page[0] in self._holds or self._inner.admit(page, size, group)

    def track(self, page: PageKey, size: int, group: str) -> None:
        held = self._pages.get(page[0])
        if held is None:
            self._inner.track(page, size, group)
        elif page not in held:
            held[page] = (size, group)
            self._add(1, size, group)

    def touch(self, page: PageKey) -> None:
        if page[0] not in self._holds:
            self._inner.touch(page)

    def evict(self) -> PageKey | None:
        return self._inner.evict()

    def expendable(self) -> bool:
        return self._inner.expendable()

    def forget(self, page: PageKey) -> None:
        held = self._pages.get(page[0])
        if held is None:
            self._inner.forget(page)
        elif (known := held.pop(page, None)) is not None:
            self._add(-1, -known[0], known[1])

    def __len__(self) -> int:
        return len(self._inner) + self._count
