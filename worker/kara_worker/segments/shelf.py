"""Pages in segment files over all directories of a store: the I/O half. The books are kept in `PageSpace`."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from kara_cache.checksum import checksum
from kara_cache.errors import ConfigError
from kara_cache.page import PageHeader, PageId
from kara_cache.page_record import pack, packed_bytes, record_bytes, unit_of
from kara_worker.pages.page_directory import PageDirectory, is_disk_fault, is_full
from kara_worker.pages.page_file import CREATED_STEP_NS, PageDamaged
from kara_worker.pages.page_files import NOT_THE_PAGE, least_free, score
from kara_worker.pages.page_shelf import Written
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.directory import SegmentDirectory
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.quarantine import Quarantine, cut
from kara_worker.segments.reader import SegmentReader
from kara_worker.segments.reclaim import SegmentReclaim
from kara_worker.segments.segment import (
    Segment,
    SegmentHead,
    SegmentPage,
    entry_of,
    offset_in,
    place_of,
    size_in,
    slot_in,
)

log = logging.getLogger(__name__)

_BLOCK_BYTES = 4096
_FOUND_BATCH = 1024  # pages that the policy hears of under one lock: about 1 ms
NEW, KEPT = "new", "kept"  # pages that come in, and pages that were worth copying: they leave at other times


class SegmentShelf:
    """Thread-safe. Faults of a disk end here: counted, the page or the whole directory forgotten.

    A page's data is on disk before the journal says so, and the journal before the books. Files of
    segments take at most the capacity, and one segment more while pages are being copied.
    """

    def __init__(
        self,
        roots: Sequence[str | os.PathLike[str]],
        page_bytes: int,
        space: PageSpace[int],
        index: SegmentIndex,
        *,
        segment_bytes: int,
        open_segments: int,
        min_free_bytes: int | None,
        quarantine: Quarantine,
    ) -> None:
        """Raises ConfigError."""
        self._space = space
        self._index = index
        self._segment_bytes = segment_bytes
        self._min_free_bytes = min_free_bytes
        self._room = threading.RLock()  # guards heads, sealing and removal of segments, _allocated
        self._commit = threading.Lock()  # the journals and the books say the same in the same order
        self._opening = threading.Lock()  # one at a time opens and closes directories; guards _closed
        self._closed = False
        self._forgotten: set[int] = set()  # directories out of use; guarded by _room
        self._allocated = dict.fromkeys(range(len(roots)), 0)  # bytes of segments, by directory
        self._reclaim = SegmentReclaim(space, index, self, segment_bytes=segment_bytes)
        self._reader = SegmentReader(
            space, index, page_bytes, open_segments=open_segments, unreadable=self._unreadable
        )
        self._quarantine = quarantine
        self.elsewhere: Callable[[PageId], bool] = lambda page: False  # tries to bring in a missing page
        self._directories = [
            PageDirectory(root, number=number, page_bytes=page_bytes) for number, root in enumerate(roots)
        ]
        self._places = [SegmentDirectory(home, index) for home in self._directories]
        try:
            for place in self._places:
                place.home.open()
                self._load(place)
        except ConfigError:
            self.close()
            raise

    def _load(self, place: SegmentDirectory) -> None:
        root = place.home.root
        try:
            self._allocated[place.home.number] = place.open(self._space)
        except OSError as exc:
            place.home.usable = False
            raise ConfigError(f"page directory {root}: {exc.strerror or exc}") from exc

    @property
    def directories(self) -> Sequence[PageDirectory]:
        return self._directories

    @property
    def unlisted(self) -> bool:
        """Pages are in the books as soon as there is a store; the eviction policy hears of them later."""
        return any(place.found for place in self._places)

    def list_all(self, stop: Callable[[], bool]) -> None:
        for place in self._places:
            found = place.found
            while found and not stop():
                batch: list[PageId] = []
                with suppress(IndexError):  # another thread takes from it, too
                    batch.extend(found.popleft() for _ in range(_FOUND_BATCH))
                self._space.track_found(batch)

    @property
    def allocated(self) -> int:
        """Bytes of all segments."""
        return sum(self._allocated.values())

    def find(self, page: PageId) -> int | None:
        entry = self._space.find(page)
        if entry is None and not self.elsewhere(page):
            return None
        return entry if entry is not None else self._space.find(page)

    # -- reading ------------------------------------------------------------------------------------

    def open(self, page: PageId, entry: int, *, whole: bool = False) -> SegmentPage | None:
        stored = self._reader.open(page, entry, whole=whole)
        if stored is not None:
            self._directories[stored.directory].worked()
        return stored

    def _unreadable(self, page: PageId, entry: int, segment: Segment, exc: PageDamaged | OSError) -> None:
        if isinstance(exc, PageDamaged):
            log.warning("dropped a page: %s", exc)
            if self.drop(page, "corrupt", entry=entry):
                self._space.damaged(exc.where)
        elif isinstance(exc, FileNotFoundError):
            self.drop(page, "lost", entry=entry)
            self._abandon_lost(self._places[segment.directory])
        else:
            self._failed(self._directories[segment.directory], exc)
            if exc.errno not in NOT_THE_PAGE:
                self.drop(page, "lost", entry=entry)

    def is_older(self, page: PageId, entry: int, cutoff_ns: int) -> bool:
        """A segment knows when its first and its last page were made; between, headers are read."""
        segment = self._index.segment(entry)
        if segment is None or segment.oldest * CREATED_STEP_NS >= cutoff_ns:
            return False
        if (segment.newest + 1) * CREATED_STEP_NS <= cutoff_ns:
            return True
        stored = self.open(page, entry)
        return stored is not None and stored.header.created_ns < cutoff_ns

    # -- writing ------------------------------------------------------------------------------------

    def size_of(self, header: PageHeader) -> int:
        return record_bytes(packed_bytes(header), header.length)

    def choose(
        self, page: PageId, size: int, *, spare: bool = True, admitted: bool = False
    ) -> PageDirectory | None:
        """By rendezvous hashing, weighted by the size of the file systems."""
        usable = self.places()
        if len(usable) > 1:
            usable.sort(key=lambda place: score(page, place.home))
        chosen: list[PageDirectory] = []

        def found() -> bool:
            chosen.extend(
                place.home for place in usable if not chosen and self._fits(place, size, spare=spare)
            )
            return bool(chosen)

        if not usable:
            return None
        if not found() and self._space.capacity_bytes - self.allocated >= size:
            with self._room:  # the disk is full, not the cache: readers elsewhere ask again
                due = self._quarantine.release(early=True)
            cut(due)
        if found() or self._reclaim.make_room(size, found, admitted=admitted):
            return chosen[0]
        return None

    def places(self) -> list[SegmentDirectory]:
        """Those that are in use."""
        return [place for place in self._places if place.home.usable]

    def _fits(self, place: SegmentDirectory, size: int, *, spare: bool) -> bool:
        try:
            with self._room:
                head = place.heads.get(NEW)
                if head is not None and head.has_room(size):
                    return True
                return self._new_bytes(place, size, NEW, spare=spare) > 0
        except OSError as exc:
            self._failed(place.home, exc)
            return False

    def seal_full(self, place: SegmentDirectory, size: int) -> None:
        try:
            with self._room:
                for kind in (NEW, KEPT):
                    head = place.heads.get(kind)
                    if head is not None and not head.has_room(size):
                        self._seal(place, kind)
        except OSError as exc:
            self._failed(place.home, exc)

    @property
    def behind(self) -> bool:
        """Room for two segments is kept at hand, where the cache has more than a few."""
        room = self._space.capacity_bytes - self.allocated
        return room < 2 * self._segment_bytes and self._space.capacity_bytes >= 16 * self._segment_bytes

    def _new_bytes(self, place: SegmentDirectory, size: int, kind: str, *, spare: bool) -> int:
        """How large a new segment for a page of `size` bytes can be; 0: there is no room. Raises OSError."""
        want = max(self._segment_bytes, size)
        if kind == NEW:
            want = min(want, self._space.capacity_bytes - self.allocated)
        if want < size:
            return 0
        free = place.home.free_bytes() - (least_free(place.home, self._min_free_bytes) if spare else 0)
        want = min(want, free - free % _BLOCK_BYTES)
        return want if want >= size else 0

    def write(self, directory: PageDirectory, header: PageHeader, data: memoryview, *, group: str) -> Written:
        place, page, kept = self._places[directory.number], header.page, False
        raw, unit = pack(header), unit_of(header.length)
        size = -(-(len(raw) + header.length) // unit) * unit  # as `size_of`
        try:
            taken = self._take(place, size, unit, NEW)
            if taken is None:
                return Written.FULL
            head, start = taken
            try:
                head.write(start, raw, data)
                at = place_of(start, size)
                with self._commit:
                    if self._space.find(page) is not None:
                        return Written.STORED
                    _still_in_use(head.segment)
                    place.log_put(page, head.segment, at, header, group)
                    self._space.add(page, entry_of(head.segment.slot, at), header.path, group)
                    kept = True
            finally:
                self._written(head.segment)
        except OSError as exc:
            self._failed(directory, exc)
            return Written.FULL if is_full(exc) else Written.FAILED
        finally:
            if not kept:
                self._space.release(size, group)
        directory.worked()
        return Written.STORED

    def copy(self, place: SegmentDirectory, page: PageId, entry: int) -> bool:
        """Whether the page has left its segment, for another one or because it is no good."""
        stored = self.open(page, entry)
        if stored is None:
            return True
        start, size = offset_in(entry), size_in(entry)
        try:
            raw = memoryview(os.pread(stored.fd, size, start))
            data = raw[stored.offset - start :][: stored.header.length]
            if checksum(data) != stored.header.page_sum:
                raise PageDamaged("data", f"page {page}: was to be copied, and is not what was filled")
            taken = self._take(place, size, unit_of(stored.header.length), KEPT)
            if taken is None:
                return False
            head, to = taken
            try:
                head.write(to, b"", raw)
                self._move(place, page, entry, head.segment, place_of(to, size))
            finally:
                self._written(head.segment)
        except PageDamaged as exc:
            log.warning("dropped a page: %s", exc)
            if self.drop(page, "corrupt", entry=entry):
                self._space.damaged(exc.where)
        except OSError as exc:
            self._failed(place.home, exc)
            return False
        return True

    def _move(self, place: SegmentDirectory, page: PageId, entry: int, to: Segment, at: int) -> None:
        with self._commit:
            old = self._index.segment(entry)
            if old is None or self._space.find(page) != entry:
                return
            _still_in_use(to)
            place.log_moved(page, old, to, at)
            moved = entry_of(to.slot, at)
            if not self._space.move(page, entry, moved):
                place.log_gone([(page, moved)])
                return
        with self._room:
            self._remove_if_empty(old)

    def _take(
        self, place: SegmentDirectory, size: int, unit: int, kind: str
    ) -> tuple[SegmentHead, int] | None:
        """Room for a record, which nobody else gets; None: there is none. Raises OSError."""
        with self._room:
            if not place.home.usable:
                raise FileNotFoundError(errno.ENOENT, "the directory is out of use", str(place.home.root))
            head = place.heads.get(kind)
            start = head.take(size, unit) if head is not None else None
            if start is None:
                want = self._new_bytes(place, size, kind, spare=False)
                if not want:
                    return None
                self._seal(place, kind)
                head = place.new_head(kind, want)
                self._allocated[place.home.number] += want
                start = head.take(size, unit)
            assert head is not None
            assert start is not None
            head.segment.pending += 1
            return head, start

    def _abandon_lost(self, place: SegmentDirectory) -> None:
        """Looks whether the ends of segments are still there: nobody would find what is added to others."""
        errors = []
        with self._room:  # or it might be sealed, and removed by us, before it is looked at
            for kind in (NEW, KEPT):
                head = place.heads.get(kind)
                error = head.lost() if head is not None else None
                if error is not None:
                    errors.append(error)
                    with suppress(OSError):
                        self._seal(place, kind)
        for error in errors:
            self._failed(place.home, error)

    def _seal(self, place: SegmentDirectory, kind: str) -> None:
        head = place.heads.pop(kind, None)
        if head is None:
            return
        self._allocated[place.home.number] -= head.seal()
        head.segment.sealed = True
        self._remove_if_empty(head.segment)

    def _written(self, segment: Segment) -> None:
        with self._room:
            segment.pending -= 1
            self._remove_if_empty(segment)

    # -- leaving ------------------------------------------------------------------------------------

    def drop(self, page: PageId, reason: str, *, entry: int | None = None) -> int:
        taken = self._space.take(page, reason, entry=entry)
        if taken is None:
            return 0
        self.unlink([(page, taken)])
        return size_in(taken)

    def unlink(self, victims: Iterable[tuple[PageId, int]]) -> None:
        by_place: dict[int, list[tuple[PageId, int]]] = {}
        for page, entry in victims:
            by_place.setdefault(self._index.directory(entry), []).append((page, entry))
        for number, pages in by_place.items():
            home = self._directories[number]
            try:
                if number >= 0 and home.usable:
                    with self._commit:
                        self._places[number].log_gone(pages)
            except OSError as exc:
                self._failed(home, exc)
            segments = {slot_in(entry): self._index.segment(entry) for _, entry in pages}
            with self._room:
                for segment in segments.values():
                    if segment is not None:
                        self._remove_if_empty(segment)
            for _, entry in pages:
                self._space.release(size_in(entry))

    def _remove_if_empty(self, segment: Segment) -> None:
        """With the lock of the room."""
        if segment.live or segment.pending or not segment.sealed or segment.slot < 0:
            return
        slot = segment.slot
        self._index.detach(segment)
        self._allocated[segment.directory] -= segment.bytes
        self._reader.take(slot)
        try:
            self._quarantine.add(segment)
            os.unlink(segment.path)
        except FileNotFoundError:
            pass
        except OSError as exc:  # its bytes are lost to us until the next start, which removes it
            self._space.disk_error()
            log.warning("%s: %s", segment.path, exc)

    def maintain(self) -> None:
        """Makes room ahead of need, cuts what other processes have had long enough, writes a new index
        where a journal is long."""
        if self.behind:
            self._reclaim.make_room(0, lambda: not self.behind, admitted=self._space.expendable())
        with self._room:
            due = self._quarantine.release()
        cut(due)
        for place in self.places():
            self._abandon_lost(place)
            self._write_index(place, often=2)

    def _write_index(self, place: SegmentDirectory, *, often: int) -> None:
        try:
            with self._commit:
                begun = place.home.usable and place.begin_index(often=often)
            if begun:
                place.write_index()
        except OSError as exc:
            self._failed(place.home, exc)

    # -- directories that fail ----------------------------------------------------------------------

    def _failed(self, directory: PageDirectory, error: OSError) -> None:
        if not is_full(error):
            self._space.disk_error()
            log.log(
                logging.WARNING if is_disk_fault(error) else logging.DEBUG, "%s: %s", directory.root, error
            )
        if not directory.failed(error):
            return
        with self._room, self._commit:
            if directory.number in self._forgotten:
                return
            self._forgotten.add(directory.number)
            count = self._space.forget_directory(directory.number)
            for segment in self._index.segments():
                if segment.directory == directory.number:
                    self._index.detach(segment)
            self._allocated[directory.number] = 0
            self._places[directory.number].close()
        log.error("page directory %s: out of use with %d pages: %s", directory.root, count, error)
        if directory.is_gone():  # most likely wiped by hand: go on with an empty one at once
            self.revive()

    def revive(self) -> int:
        with self._room:
            numbers = sorted(self._forgotten)
        return sum(self._revive(self._places[number]) for number in numbers)

    def _revive(self, place: SegmentDirectory) -> bool:
        home = place.home
        with self._opening:
            if self._closed or home.usable:  # another thread was first
                return False
            try:
                home.open()
                with self._room:
                    self._load(place)
                    self._forgotten.discard(home.number)
            except ConfigError as exc:
                log.debug("still out of use: %s", exc)
                return False
        self.list_all(lambda: False)
        log.info("page directory %s: in use again", home.root)
        return True

    def close(self) -> None:
        with self._opening, self._room:
            if self._closed:
                return
            self._closed = True
            for place in self._places:
                with suppress(OSError):  # the next start cuts what is open still, and reads the journal
                    for kind in (NEW, KEPT):
                        self._seal(place, kind)
                    if place.home.usable and place.begin_index(often=16):
                        place.write_index()
                with self._commit:
                    place.close()
                place.home.close()
            self._quarantine.close()
            self._reader.close()


def _still_in_use(segment: Segment) -> None:
    """Raises OSError for one whose directory was given up while a page was written to it."""
    if segment.slot < 0:
        raise FileNotFoundError(errno.ENOENT, "the directory was given up meanwhile", segment.path)
