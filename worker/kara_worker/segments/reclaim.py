"""Which segment is given up, and what of it is worth copying."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from kara_cache.page import PageId
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.directory import SegmentDirectory
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.segment import Segment, slot_in

_WORTH_COPYING = 1 / 2  # of a segment at most: for each byte that comes in, no more than one is copied
_MOST_COPYING = 15 / 16  # where the policy has nothing to spare, and so little comes in: fifteen for one
_MOST_VICTIMS = 4  # segments' worth in one go, or an eighth of the cache: room that readers hold comes later
_VICTIMS_PART = 8  # of a segment, between two looks at what has become of the segments


class Copier(Protocol):
    """What moves pages and removes those that have left."""

    def copy(self, place: SegmentDirectory, page: PageId, entry: int) -> bool:
        """Whether the page is elsewhere now, or gone; False: there was no room, or the disk failed."""
        ...

    def unlink(self, victims: Sequence[tuple[PageId, int]]) -> None: ...

    def seal_full(self, place: SegmentDirectory, size: int) -> None:
        """Nothing is added any more to a segment that has not got so much room."""
        ...

    def places(self) -> Sequence[SegmentDirectory]: ...


class SegmentReclaim:
    """Thread-safe; one thread at a time makes room, and the others then find it made.

    The policy says which pages go, one by one, whatever segment they are in. A segment without pages
    is removed at once; that is all there is to do for a cache that forgets in the order it learns.
    Otherwise the emptiest segment is given up: if its pages fill at most half of it they are copied,
    to where pages are that were worth copying before. If they fill more, the policy is asked for
    further victims until some segment is that empty. Where it has none to spare, since everything is
    pinned or what is here will be read again, more is copied: a page lost is a page to fetch.
    """

    def __init__(
        self, space: PageSpace[int], index: SegmentIndex, copier: Copier, *, segment_bytes: int
    ) -> None:
        self._space = space
        self._index = index
        self._copier = copier
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self.copied = 0  # pages

    def make_room(self, size: int, enough: Callable[[], bool], *, admitted: bool) -> bool:
        """Goes on until `enough`; False if that cannot be. Asks the policy for victims only if `admitted`.

        Raises what `enough` raises.
        """
        with self._lock:
            for place in self._copier.places():
                self._copier.seal_full(place, size)
            copying, spare = True, max(_MOST_VICTIMS * self._segment_bytes, self._space.capacity_bytes // 8)
            while not enough():
                victim, share = self._emptiest()
                worth = _WORTH_COPYING if self._space.expendable() else _MOST_COPYING
                if copying and victim is not None and share <= worth:
                    copying = self._reclaim(victim)
                elif not admitted or spare <= 0:
                    return False
                elif victims := self._space.take_more(max(size, self._segment_bytes // _VICTIMS_PART)):
                    self._copier.unlink(victims)
                    spare -= sum(self._index.size(entry) for _, entry in victims)
                elif copying and victim is not None and share <= _MOST_COPYING:
                    copying = self._reclaim(victim)
                else:
                    return False
            return True

    def _emptiest(self) -> tuple[Segment | None, float]:
        best, best_share = None, 2.0
        for segment in self._index.segments():
            if segment.sealed and not segment.pending and segment.bytes:
                share = segment.live / segment.bytes
                if share < best_share:
                    best, best_share = segment, share
        return best, best_share

    def _reclaim(self, segment: Segment) -> bool:
        """Moves the pages of the segment elsewhere, upon which it is removed; False if that failed."""
        slot = segment.slot
        place = next((p for p in self._copier.places() if p.home.number == segment.directory), None)
        if place is None:
            return False
        for key in dict.fromkeys(segment.pages):
            page = PageId(*key)
            entry = self._space.find(page)
            if entry is None or slot_in(entry) != slot or segment.slot != slot:
                continue
            if not self._copier.copy(place, page, entry):
                return False
            self.copied += 1
        return segment.slot != slot
