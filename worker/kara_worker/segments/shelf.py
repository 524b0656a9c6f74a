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
from kara_worker.eviction.base import PageKey
from kara_worker.pages.directory_faults import DirectoryFaults
from kara_worker.pages.page_directory import PageDirectory, is_full
from kara_worker.pages.page_file import CREATED_STEP_NS, PageDamaged
from kara_worker.pages.page_files import NOT_THE_PAGE, score
from kara_worker.pages.page_shelf import Written
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.directory import SegmentDirectory
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.quarantine import Quarantine
from kara_worker.segments.reader import SegmentReader
from kara_worker.segments.reclaim import SegmentReclaim
from kara_worker.segments.room import KEPT, NEW, SegmentRoom
from kara_worker.segments.segment import (
    Segment,
    SegmentPage,
    entry_of,
    offset_in,
    place_of,
    size_in,
)

log = logging.getLogger(__name__)

_FOUND_BATCH = 1024  # pages that the policy hears of under one lock: about 1 ms


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
        self._commit = threading.Lock()  # the journals and the books say the same in the same order
        self._reclaim = SegmentReclaim(space, index, self, segment_bytes=segment_bytes)
        self._reader = SegmentReader(
            space, index, page_bytes, open_segments=open_segments, unreadable=self._unreadable
        )
        self._faults = DirectoryFaults(
            space, give_up=self._give_up, take_back=self._load, listed=lambda: self.list_all(lambda: False)
        )
        self.elsewhere: Callable[[PageId], bool] = lambda page: False  # tries to bring in a missing page
        self._directories = [
            PageDirectory(root, number=number, page_bytes=page_bytes) for number, root in enumerate(roots)
        ]
        self._places = [SegmentDirectory(home, index) for home in self._directories]
        self._room = SegmentRoom(
            self._places,
            space,
            index,
            self._reader,
            quarantine,
            segment_bytes=segment_bytes,
            min_free_bytes=min_free_bytes,
        )
        try:
            for home in self._directories:
                home.open()
                self._load(home)
        except ConfigError:
            self.close()
            raise

    def _load(self, home: PageDirectory) -> None:
        try:
            self._room.load(self._places[home.number])
        except OSError as exc:
            home.usable = False
            raise ConfigError(f"page directory {home.root}: {exc.strerror or exc}") from exc

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
                batch: list[PageKey] = []
                with suppress(IndexError):  # another thread takes from it, too
                    batch.extend(found.popleft() for _ in range(_FOUND_BATCH))
                self._space.track_found(batch)

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
            self._seal_lost(self._places[segment.directory])
        else:
            self._faults.failed(self._directories[segment.directory], exc)
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
        found = self._first_fit(usable, size, spare=spare)
        if found is None and usable and self._room.left >= size:
            self._room.release(early=True)  # the disk is full, not the cache: readers elsewhere ask again
            found = self._first_fit(usable, size, spare=spare)

        def enough() -> bool:
            nonlocal found
            found = self._first_fit(usable, size, spare=spare)
            return found is not None

        if found is None and usable:
            self._reclaim.make_room(size, enough, admitted=admitted)
        return found

    def _first_fit(
        self, places: Iterable[SegmentDirectory], size: int, *, spare: bool
    ) -> PageDirectory | None:
        for place in places:
            if self._fits(place, size, spare=spare):
                return place.home
        return None

    def places(self) -> list[SegmentDirectory]:
        """Those that are in use."""
        return [place for place in self._places if place.home.usable]

    def _fits(self, place: SegmentDirectory, size: int, *, spare: bool) -> bool:
        try:
            return self._room.fits(place, size, spare=spare)
        except OSError as exc:
            self._faults.failed(place.home, exc)
            return False

    def seal_full(self, place: SegmentDirectory, size: int) -> None:
        try:
            self._room.seal_full(place, size)
        except OSError as exc:
            self._faults.failed(place.home, exc)

    @property
    def behind(self) -> bool:
        return self._room.short

    def write(self, directory: PageDirectory, header: PageHeader, data: memoryview, *, group: str) -> Written:
        place, page, kept = self._places[directory.number], header.page, False
        raw, unit = pack(header), unit_of(header.length)
        size = -(-(len(raw) + header.length) // unit) * unit  # as `size_of`
        try:
            taken = self._room.take(place, size, unit, NEW)
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
                self._room.wrote(head.segment)
        except OSError as exc:
            self._faults.failed(directory, exc)
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
            taken = self._room.take(place, size, unit_of(stored.header.length), KEPT)
            if taken is None:
                return False
            head, to = taken
            try:
                head.write(to, b"", raw)
                self._move(place, page, entry, head.segment, place_of(to, size))
            finally:
                self._room.wrote(head.segment)
        except PageDamaged as exc:
            log.warning("dropped a page: %s", exc)
            if self.drop(page, "corrupt", entry=entry):
                self._space.damaged(exc.where)
        except OSError as exc:
            self._faults.failed(place.home, exc)
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
        self._room.remove_empty([old])

    # -- leaving ------------------------------------------------------------------------------------

    def drop(self, page: PageId, reason: str, *, entry: int | None = None) -> int:
        taken = self._space.take(page, reason, entry=entry)
        if taken is None:
            return 0
        self._remove([(page, taken)], at_once=True)
        return size_in(taken)

    def unlink(self, victims: Iterable[tuple[PageId, int]]) -> None:
        self._remove(victims, at_once=False)

    def _remove(self, victims: Iterable[tuple[PageId, int]], *, at_once: bool) -> None:
        """`at_once`: no kill from now on brings them back."""
        by_place: dict[int, list[tuple[PageId, int]]] = {}
        for page, entry in victims:
            by_place.setdefault(self._index.directory(entry), []).append((page, entry))
        for number, pages in by_place.items():
            try:
                if number >= 0 and self._directories[number].usable:
                    with self._commit:
                        self._places[number].log_gone(pages)
                        if at_once:
                            self._places[number].log_unsaid()
            except OSError as exc:
                self._faults.failed(self._directories[number], exc)
            self._room.remove_empty({self._index.segment(entry) for _, entry in pages})
            self._space.release(sum(size_in(entry) for _, entry in pages))

    def maintain(self) -> None:
        """Makes room ahead of need, cuts what other processes have had long enough, tells the journals what
        left, and writes a new index where one is long."""
        if self.behind:
            self._reclaim.make_room(0, lambda: not self.behind, admitted=self._space.expendable())
        self._room.release()
        for place in self.places():
            self._seal_lost(place)
            self._write_index(place)

    def _seal_lost(self, place: SegmentDirectory) -> None:
        for error in self._room.seal_lost(place):
            self._faults.failed(place.home, error)

    def _write_index(self, place: SegmentDirectory) -> None:
        try:
            with self._commit:
                if not place.home.usable:
                    return
                place.log_unsaid()
                begun = place.begin_index()
            if begun:
                place.write_index()
        except OSError as exc:
            self._faults.failed(place.home, exc)

    def _give_up(self, home: PageDirectory) -> int:
        """The pages of a directory whose disk fails; their number."""
        with self._commit:
            count = self._space.forget_directory(home.number)
            self._room.forget(self._places[home.number])
        return count

    def revive(self) -> int:
        return self._faults.revive()

    def close(self) -> None:
        if not self._faults.close():
            return
        for place in self._places:
            with suppress(OSError):  # the next start cuts what is open still, and reads the journal
                self._room.seal_all(place)
                with self._commit:
                    place.log_unsaid()
                    begun = place.home.usable and place.begin_index(often=16)
                if begun:
                    place.write_index()
            with self._commit:
                place.close()
            place.home.close()
        self._room.close()
        self._reader.close()


def _still_in_use(segment: Segment) -> None:
    """Raises OSError for one whose directory was given up while a page was written to it."""
    if segment.slot < 0:
        raise FileNotFoundError(errno.ENOENT, "the directory was given up meanwhile", segment.path)
