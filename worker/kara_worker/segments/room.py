"""Room in segment files: where a record goes, what a new segment may take, when a file is removed."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress

from kara_worker.pages.page_files import least_free
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.directory import SegmentDirectory
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.quarantine import Quarantine, cut
from kara_worker.segments.reader import SegmentReader
from kara_worker.segments.segment import OPEN_MODE, Segment, SegmentHead

log = logging.getLogger(__name__)

_BLOCK_BYTES = 4096
NEW, KEPT = "new", "kept"  # pages that come in, and pages that were worth copying: they leave at other times
_KINDS = (NEW, KEPT)
_FULL_PART = 4  # of the capacity: with less left, the file of a removed segment will be wanted soon


class SegmentRoom:
    """Thread-safe. The files take at most the capacity, and one segment more while pages are being copied."""

    def __init__(
        self,
        places: Sequence[SegmentDirectory],
        space: PageSpace[int],
        index: SegmentIndex,
        reader: SegmentReader,
        quarantine: Quarantine,
        *,
        segment_bytes: int,
        min_free_bytes: int | None,
    ) -> None:
        self._places = places
        self._space = space
        self._index = index
        self._reader = reader
        self._segment_bytes = segment_bytes
        self._min_free_bytes = min_free_bytes
        self.quarantine = quarantine
        self._lock = threading.Lock()  # guards heads, sealing and removal of segments, _allocated
        self._allocated = dict.fromkeys((place.home.number for place in places), 0)

    @property
    def allocated(self) -> int:
        """Bytes of all segments; spare files are beside them."""
        return sum(self._allocated.values())

    @property
    def left(self) -> int:
        """Bytes of the capacity that no segment has; spare files may have some of them."""
        return self._space.capacity_bytes - self.allocated

    @property
    def short(self) -> bool:
        """Room for two segments is kept at hand, where the cache has more than a few."""
        return self.left < 2 * self._segment_bytes and self._space.capacity_bytes >= 16 * self._segment_bytes

    def load(self, place: SegmentDirectory) -> None:
        """What an earlier process left there. Raises ConfigError, OSError."""
        with self._lock:
            self._allocated[place.home.number] = place.open(self._space)

    def forget(self, place: SegmentDirectory) -> None:
        """A directory whose disk failed, with its segments."""
        with self._lock:
            for segment in self._index.segments():
                if segment.directory == place.home.number:
                    self._index.detach(segment)
            self._allocated[place.home.number] = 0
            place.close()

    def fits(self, place: SegmentDirectory, size: int, *, spare: bool) -> bool:
        """With `spare`, beyond the bytes that are to stay free. Raises OSError."""
        with self._lock:
            head = place.heads.get(NEW)
            if head is not None and head.has_room(size):
                return True
            return self._new_bytes(place, size, NEW, spare=spare) > 0

    def take(
        self, place: SegmentDirectory, size: int, unit: int, kind: str
    ) -> tuple[SegmentHead, int] | None:
        """Room for a record, which nobody else gets until `wrote`; None: there is none. Raises OSError."""
        with self._lock:
            if not place.home.usable:
                raise FileNotFoundError(errno.ENOENT, "the directory is out of use", str(place.home.root))
            head = place.heads.get(kind)
            start = head.take(size, unit) if head is not None else None
            if start is None:
                want = self._new_bytes(place, size, kind, spare=False)
                if not want:
                    return None
                self._seal(place, kind)
                head = self._new_head(place, kind, want)
                start = head.take(size, unit)
            assert head is not None
            assert start is not None
            head.segment.pending += 1
            return head, start

    def wrote(self, segment: Segment) -> None:
        """After `take`, whether that went well or not."""
        with self._lock:
            segment.pending -= 1
            self._remove_if_empty(segment)

    def remove_empty(self, segments: Iterable[Segment | None]) -> None:
        with self._lock:
            for segment in segments:
                if segment is not None:
                    self._remove_if_empty(segment)

    def seal_full(self, place: SegmentDirectory, size: int) -> None:
        """Nothing is added any more to a segment that has not got so much room. Raises OSError."""
        with self._lock:
            for kind in _KINDS:
                head = place.heads.get(kind)
                if head is not None and not head.has_room(size):
                    self._seal(place, kind)

    def seal_all(self, place: SegmentDirectory) -> None:
        """The process ends. Raises OSError."""
        with self._lock:
            for kind in _KINDS:
                self._seal(place, kind)
            self._drop_spares(0)

    def seal_lost(self, place: SegmentDirectory) -> list[OSError]:
        """Looks whether the ends of segments are still there: nobody would find what is added to others."""
        errors = []
        with self._lock:  # or it might be sealed, and removed by us, before it is looked at
            for kind in _KINDS:
                head = place.heads.get(kind)
                error = head.lost() if head is not None else None
                if error is not None:
                    errors.append(error)
                    with suppress(OSError):
                        self._seal(place, kind)
        return errors

    def release(self, *, early: bool = False) -> None:
        """Gives back what removed segments take of which a descriptor was passed, and spare files where
        the cache is not full any more; `early`: at once."""
        with self._lock:
            due = self.quarantine.release(early=early)
            if early or self.left > 2 * self._space.capacity_bytes // _FULL_PART:
                self._drop_spares(0)
        cut(due)

    def _new_head(self, place: SegmentDirectory, kind: str, size: int) -> SegmentHead:
        """Raises OSError."""
        again = place.spares[0].bytes if place.spares else 0
        most = self.left - size + again  # for spare files, with the one that this takes
        self._drop_spares(max(most, again), but=place)
        head = place.new_head(kind, size)
        self._allocated[place.home.number] += size
        return head

    def _drop_spares(self, most: int, *, but: SegmentDirectory | None = None) -> None:
        """Until they take no more than so many bytes; of `but` the next one stays."""
        taken = sum(segment.bytes for place in self._places for segment in place.spares)
        for place in self._places:
            while taken > most and len(place.spares) > (place is but):
                segment = place.spares.pop()
                taken -= segment.bytes
                self._unlink(segment)

    def _new_bytes(self, place: SegmentDirectory, size: int, kind: str, *, spare: bool) -> int:
        """How large a new segment for a page of `size` bytes can be; 0: there is no room. Raises OSError."""
        want = max(self._segment_bytes, size)
        if kind == NEW:
            want = min(want, self.left)
        if want < size:
            return 0
        least = least_free(place.home, self._min_free_bytes) if spare else 0
        free = place.home.free_bytes() - least
        if free < want and place.spares:
            self._drop_spares(0)
            free = place.home.free_bytes() - least
        want = min(want, free - free % _BLOCK_BYTES)
        return want if want >= size else 0

    def _seal(self, place: SegmentDirectory, kind: str) -> None:
        head = place.heads.pop(kind, None)
        if head is None:
            return
        self._allocated[place.home.number] -= head.seal()
        head.segment.sealed = True
        self._remove_if_empty(head.segment)

    def _remove_if_empty(self, segment: Segment) -> None:
        if segment.live or segment.pending or not segment.sealed or segment.slot < 0:
            return
        slot = segment.slot
        self._index.detach(segment)
        self._allocated[segment.directory] -= segment.bytes
        self._reader.take(slot)
        place = self._places[segment.directory]
        if _unseen(segment) and self.left < self._space.capacity_bytes // _FULL_PART and place.home.usable:
            try:
                os.chmod(segment.path, OPEN_MODE)
                place.spares.append(segment)
                return
            except OSError as exc:
                log.debug("%s: %s", segment.path, exc)
        self._unlink(segment)

    def _unlink(self, segment: Segment) -> None:
        try:
            self.quarantine.add(segment)
            os.unlink(segment.path)
        except FileNotFoundError:
            pass
        except OSError as exc:  # its bytes are lost to us until the next start, which removes it
            self._space.disk_error()
            log.warning("%s: %s", segment.path, exc)

    def close(self) -> None:
        with self._lock:
            self.quarantine.close()


def _unseen(segment: Segment) -> bool:
    """Nobody was sent anything of it and nobody can be: it has no slot any more, without which no one opens
    it, and no one did while it had."""
    return not segment.seen
