"""S3-FIFO: most pages are used once, so a small queue decides who may stay.

Juncheng Yang, Yazhuo Zhang, Ziyue Qiu, Yao Yue, K. V. Rashmi: "FIFO queues are all you need for cache
eviction", SOSP 2023. Not for epoch scans: a shuffled scan of twice the cache hits 0.19 instead of the
possible 0.50; put a `Guard` around it.
"""

from __future__ import annotations

from collections import deque

from kara_worker.eviction.base import PageKey
from kara_worker.eviction.ghost import page_key

_SMALL_SHARE = 10  # the small queue holds a tenth of the pages (section 4.1 of the paper)
_MAX_USES = 3  # two bits (section 4.1)
_USES_TO_STAY = 2  # uses while in the small queue (algorithm 1: freq > 1)
_MAIN = 4  # flag beside the count of uses: in the main queue


class S3Fifo:
    """Counts pages, not bytes: within one data set they are nearly all of one size.

    A page that is used twice while in the small queue moves to the main queue; one that is not leaves
    its key in a ghost list as long as the main queue, and goes straight to the main queue if it comes
    back in that time. The main queue gives every use another round.
    """

    def __init__(self) -> None:
        self._state: dict[PageKey, int] = {}  # uses, and _MAIN
        # oldest first; both also hold names of pages that have left
        self._small: deque[PageKey] = deque()
        self._main: deque[PageKey] = deque()
        self._mains = 0
        self._ghost_order: deque[int] = deque()
        self._ghosts: set[int] = set()
        self._filling = True  # nothing has been evicted yet

    def admit(self, page: PageKey, size: int, group: str) -> bool:
        return True

    def track(self, page: PageKey, size: int, group: str) -> None:
        if page in self._state:
            return
        key = page_key(page) if self._ghosts else 0
        if key in self._ghosts:
            self._ghosts.discard(key)
            self._state[page] = _MAIN
            self._mains += 1
            self._main.append(page)
        else:
            self._state[page] = 0
            self._small.append(page)

    def touch(self, page: PageKey) -> None:
        state = self._state.get(page)
        if state is not None and state & _MAX_USES < _MAX_USES:
            self._state[page] = state + 1

    def evict(self) -> PageKey | None:
        if self._filling:
            self._divide()
        while self._state:
            smalls = len(self._state) - self._mains
            from_small = smalls * _SMALL_SHARE >= len(self._state) or not self._mains
            victim = self._evict_small() if from_small else self._pass_main()
            if victim is not None:
                del self._state[victim]
                return victim
        return None

    def expendable(self) -> bool:
        return bool(self._state)

    def forget(self, page: PageKey) -> None:
        state = self._state.pop(page, None)
        if state is None:
            return
        self._mains -= state >> 2
        if len(self._small) + len(self._main) > 2 * len(self._state) + 64:
            self._compact()

    def __len__(self) -> int:
        return len(self._state)

    def _divide(self) -> None:
        """The first fill, all but its first tenth, goes to the main queue, as in the authors' simulator."""
        self._filling = False
        first = len(self._state) // _SMALL_SHARE
        pages = list(dict.fromkeys(page for page in self._small if page in self._state))
        self._small = deque(pages[:first])
        self._main.extend(pages[first:])
        for page in pages[first:]:
            self._state[page] |= _MAIN
        self._mains = len(pages) - first

    def _evict_small(self) -> PageKey | None:
        """The oldest page of the small queue that was not used enough; those before it are promoted."""
        while self._small:
            page = self._small.popleft()
            state = self._state.get(page, _MAIN)
            if state & _MAIN:  # gone, or promoted
                continue
            if state < _USES_TO_STAY:
                self._haunt(page_key(page))
                return page
            self._state[page] = _MAIN
            self._mains += 1
            self._main.append(page)
        return None

    def _pass_main(self) -> PageKey | None:
        """Looks at the oldest page of the main queue: None if it gets another round, or is gone."""
        page = self._main.popleft()
        state = self._state.get(page, 0)
        if not state & _MAIN:
            return None
        if state > _MAIN:
            self._state[page] = state - 1
            self._main.append(page)
            return None
        self._mains -= 1
        return page

    def _haunt(self, key: int) -> None:
        if key not in self._ghosts:
            self._ghosts.add(key)
            self._ghost_order.append(key)
        while len(self._ghosts) > max(self._mains, 1):
            self._ghosts.discard(self._ghost_order.popleft())
        if len(self._ghost_order) > 2 * len(self._ghosts) + 64:  # keys of pages that came back
            self._ghost_order = deque(key for key in dict.fromkeys(self._ghost_order) if key in self._ghosts)

    def _compact(self) -> None:
        state = self._state
        self._small = deque(dict.fromkeys(p for p in self._small if not state.get(p, _MAIN) & _MAIN))
        self._main = deque(dict.fromkeys(p for p in self._main if state.get(p, 0) & _MAIN))
