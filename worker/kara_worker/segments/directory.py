"""The segments of one page directory: its files, its journal, and the ends where pages are added."""

from __future__ import annotations

import gc
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from kara_cache.errors import ConfigError
from kara_cache.page import PageHeader, PageId
from kara_worker.eviction.base import PageKey
from kara_worker.pages.left_segments import FOLDER, SUFFIX
from kara_worker.pages.page_directory import PageDirectory
from kara_worker.pages.page_file import CREATED_STEP_NS
from kara_worker.pages.page_index import FileRecord
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.journal import Journal, Placed, age_frame, file_frame
from kara_worker.segments.quarantine import is_mapped
from kara_worker.segments.segment import (
    NEVER,
    PLACE_BITS,
    SEALED_MODE,
    Segment,
    SegmentHead,
    entry_of,
    offset_in,
    place_in,
    size_in,
)

_BLOCK_BYTES = 4096
_LEAST_JOURNAL = 1 << 14  # records; a shorter one is read in some milliseconds
_MOST_UNSAID = 256  # evicted pages that a kill may bring back, of each directory


class SegmentDirectory:
    """Not thread-safe: the shelf's lock guards it. Raises OSError where a disk fails."""

    def __init__(self, home: PageDirectory, index: SegmentIndex) -> None:
        self.home = home
        self.heads: dict[str, SegmentHead] = {}  # by what is added there
        self.spares: list[Segment] = []  # removed ones that nobody has seen; their files become the next
        self.found: deque[PageKey] = deque()  # pages of an earlier process that the policy does not know yet
        self._index = index
        self._folder = f"{home.root}/{FOLDER}"
        self._journal: Journal | None = None
        self._unsaid: list[tuple[PageKey, Segment, int]] = []  # pages that left, and where they were
        self._next = 0

    def open(self, space: PageSpace[int]) -> int:
        """Puts what an earlier process left into the books; the bytes of its segments.

        Raises ConfigError where the place of the segments is something else, OSError.
        """
        with suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        if not stat.S_ISDIR(os.lstat(self._folder).st_mode):
            raise ConfigError(f"page directory {self.home.root}: {self._folder} is not a directory")
        self.heads, self.spares = {}, []
        with _no_collection():
            return self._load(Journal(self._folder), space)

    def _load(self, journal: Journal, space: PageSpace[int]) -> int:
        self._journal = journal
        sizes = self._files()
        numbers = {entry >> PLACE_BITS for entry in journal.pages.values()}
        self._next = 1 + max(*sizes, *numbers, -1, -1)
        kept = sorted(numbers & sizes.keys())  # in a store without holes slots are numbers, and entries stay
        segments = {number: self._segment(number, *sizes[number]) for number in kept}
        for segment in segments.values():
            self._index.attach(segment)
        spare: list[tuple[PageKey, int]] = []
        space.adopt(lambda: self._index.adopt(journal.pages, segments, journal.files, spare))
        self.log_gone(spare)
        self.log_unsaid()
        self.found = deque(journal.pages)
        journal.forget_found()
        for number in sizes.keys() - numbers:  # nothing in them was ever written down, or all of it has left
            os.unlink(self._path(number))
        for segment in segments.values():
            if not segment.sealed:
                self._cut(segment)
        return sum(segment.bytes for segment in segments.values())

    def _files(self) -> dict[int, tuple[int, bool]]:
        """Number of each segment -> its bytes, and whether it is sealed."""
        found: dict[int, tuple[int, bool]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                number = entry.name.removesuffix(SUFFIX)
                if (
                    entry.name.endswith(SUFFIX)
                    and number.isdecimal()
                    and entry.is_file(follow_symlinks=False)
                ):
                    status = entry.stat(follow_symlinks=False)
                    found[int(number)] = status.st_size, not status.st_mode & stat.S_IWUSR
        return found

    def _segment(self, number: int, size: int, sealed: bool) -> Segment:
        assert self._journal is not None
        segment = Segment(self.home.number, number, self._path(number), size, sealed=sealed)
        segment.seen = True  # an earlier process may have sent it, and what it sent may be on its way still
        segment.oldest, segment.newest = self._journal.ages.get(number, (0, NEVER))
        return segment

    def _cut(self, segment: Segment) -> None:
        """A crash left it open: what is behind its last page goes back, unless somebody may look at a page
        there that has left since, and nothing is added any more."""
        entries = [entry for page in segment.pages if (entry := self._index.get(page)) is not None]
        end = max((offset_in(entry) + size_in(entry) for entry in entries), default=0)
        if end < segment.bytes:
            fd = os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if not is_mapped(fd):
                    os.ftruncate(fd, end)
                    segment.bytes = end
            finally:
                os.close(fd)
        os.chmod(segment.path, SEALED_MODE)
        segment.sealed = True

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number}{SUFFIX}"

    def new_head(self, kind: str, size: int) -> SegmentHead:
        """A new segment of so many bytes, to which pages are added from now on."""
        segment = Segment(self.home.number, self._next, self._path(self._next), size, sealed=False)
        self._next += 1
        head = SegmentHead(segment, self.spares.pop(0) if self.spares else None)
        self._index.attach(segment)
        self.heads[kind] = head
        return head

    def log_put(self, page: PageId, segment: Segment, place: int, header: PageHeader, group: str) -> None:
        """To be called before the page enters the books."""
        step = header.created_ns // CREATED_STEP_NS
        before = b""
        if self._index.file(page.file_id) is None:
            before = file_frame(page.file_id, group, header.path)
        self._log_placed(page, segment, place, step, step, before)

    def log_moved(self, page: PageId, old: Segment, new: Segment, place: int) -> None:
        """To be called before the page's entry changes."""
        self._log_placed(page, new, place, old.oldest, old.newest)

    def _log_placed(
        self, page: PageId, segment: Segment, place: int, oldest: int, newest: int, before: bytes = b""
    ) -> None:
        """In one write, after which the segment knows how old the pages in it are."""
        if oldest < segment.oldest or newest > segment.newest:
            oldest, newest = min(oldest, segment.oldest), max(newest, segment.newest)
            before += age_frame(segment.number, oldest, newest)
            self._open_journal().placed([(page, segment.number, place)], before=before)
            segment.oldest, segment.newest = oldest, newest
        else:
            self._open_journal().placed([(page, segment.number, place)], before=before)

    def log_gone(self, victims: Iterable[tuple[PageKey, int]]) -> None:
        """To be called after the pages have left the books. The journal hears of many at once, and not at
        all of pages whose segment is removed before that: pages that were evicted shortly before a kill
        are there again after it, as they were."""
        for page, entry in victims:
            segment = self._index.segment(entry)
            if segment is not None:
                self._unsaid.append((page, segment, place_in(entry)))
        if len(self._unsaid) >= _MOST_UNSAID:
            self.log_unsaid()

    def log_unsaid(self) -> None:
        """Tells the journal now.

        Nobody says anything of a segment that was removed. Its slot may be another's by now, in which the
        page came back to the very place that it had left, before that could be noted: it is there.
        """
        records = [
            (page, segment.number, at)
            for page, segment, at in self._unsaid
            if segment.slot >= 0 and self._index.get(page) != entry_of(segment.slot, at)
        ]
        if records:
            self._open_journal().gone(records)
        self._unsaid = []

    def begin_index(self, *, often: int = 2) -> bool:
        """Begins a new journal, if the one there is has more than a part of what an index would have."""
        journal = self._journal
        if journal is None or journal.records < max(_LEAST_JOURNAL, len(self._index) // often):
            return False
        journal.begin_index()
        return True

    def write_index(self) -> None:
        """After `begin_index`; pages may come and go meanwhile."""
        segments = [segment for segment in self._index.segments() if segment.directory == self.home.number]
        ages = [(segment.number, segment.oldest, segment.newest) for segment in segments]
        self._open_journal().write_index(self._placed(), self._records(), ages)

    def _placed(self) -> Iterator[Placed]:
        for page in self._index.pages():
            entry = self._index.get(page)
            segment = self._index.segment(entry) if entry is not None else None
            if entry is None or segment is None or segment.directory != self.home.number:
                continue
            if self._index.get(page) == entry:  # so the slot was still that segment's when we looked
                yield page, segment.number, place_in(entry)

    def _records(self) -> Iterator[FileRecord]:
        yield from self._index.files()  # when it is asked for, not before

    def _open_journal(self) -> Journal:
        if self._journal is None:
            raise OSError(5, "the journal is closed", self._folder)
        return self._journal

    def close(self) -> None:
        """Idempotent."""
        self.heads, self.spares, self._unsaid = {}, [], []
        if self._journal is not None:
            self._journal.close()
            self._journal = None


@contextmanager
def _no_collection() -> Iterator[None]:
    """A million new objects, none of them garbage: the collector would look at all of them many times
    and double the time of a restart."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
