"""Pages out of segment files: descriptors of segments that are kept open, headers that are checked."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from kara_cache.errors import FormatError
from kara_cache.page import HEADER_BYTES, PageId
from kara_cache.page_record import data_at, packed_bytes, record_bytes, unpack
from kara_worker.pages.page_file import PageDamaged, check_data
from kara_worker.pages.page_files import NOT_THE_PAGE
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.segment import Segment, SegmentFile, SegmentPage, offset_in, size_in, slot_in

_TRIES = 4  # at a page that reclaiming moves away meanwhile


class SegmentReader:
    """Thread-safe. Keeps at most so many segments open, the least recently used ones closed first."""

    def __init__(
        self,
        space: PageSpace[int],
        index: SegmentIndex,
        page_bytes: int,
        *,
        open_segments: int,
        unreadable: Callable[[PageId, int, Segment, PageDamaged | OSError], None],
    ) -> None:
        """`unreadable` is told of pages that are in the books and no good."""
        self._space = space
        self._index = index
        self._page_bytes = page_bytes
        self._open_segments = open_segments
        self._unreadable = unreadable
        self._files: OrderedDict[int, SegmentFile] = OrderedDict()  # by slot, the least recently used first
        self._lock = threading.Lock()

    def open(self, page: PageId, entry: int, *, whole: bool) -> SegmentPage | None:
        """The page, its header checked, with `whole` also its data; None if it is no good or not there."""
        known: int | None = entry
        for _ in range(_TRIES):
            assert known is not None
            segment = self._index.segment(known)
            try:
                stored = self._open(page, known, segment)
                if whole:
                    check_data(stored)
            except (PageDamaged, OSError) as exc:
                now = self._space.find(page)
                if now is not None and now != known:  # it was moved while we looked
                    known = now
                    continue
                if now is not None and segment is not None:
                    self._unreadable(page, known, segment, exc)
                return None
            return stored
        return None

    def _open(self, page: PageId, entry: int, segment: Segment | None) -> SegmentPage:
        """Raises PageDamaged, OSError."""
        if segment is None:
            raise FileNotFoundError(errno.ENOENT, "the segment was removed")
        try:
            file = self._file(segment, slot_in(entry))
        except OSError as exc:
            if exc.errno not in NOT_THE_PAGE or not (self.close_half() + self._space.close_half()):
                raise
            file = self._file(segment, slot_in(entry))
        start, size = offset_in(entry), size_in(entry)
        raw = os.pread(file.fd, min(size, HEADER_BYTES), start)
        if os.fstat(file.fd).st_size < start + size:  # or sendfile would end in the middle of an answer
            raise PageDamaged("truncated", f"{segment.path}: ends within a page at {start}")
        try:
            header = unpack(raw)
        except FormatError as exc:
            raise PageDamaged("header", f"{segment.path}: at {start}: {exc}") from exc
        packed = packed_bytes(header)
        if (header.page, header.page_bytes, record_bytes(packed, header.length)) != (
            page,
            self._page_bytes,
            size,
        ):
            raise PageDamaged(
                "identity",
                f"{segment.path}: at {start}: holds page {header.page}, {header.length} bytes of at most "
                f"{header.page_bytes}",
            )
        return SegmentPage(file, start, start + data_at(packed, header.length), header)

    def _file(self, segment: Segment, slot: int) -> SegmentFile:
        with self._lock:
            file = self._files.get(slot)
            if file is not None and file.segment is segment:
                self._files.move_to_end(slot)
                return file
        file = SegmentFile(segment)
        closing: list[SegmentFile] = []  # let go of without the lock: that is when descriptors are closed
        with self._lock:
            if segment.slot == slot:
                closing.append(self._files.pop(slot, file))
                self._files[slot] = file
                while len(self._files) > self._open_segments:
                    closing.append(self._files.popitem(last=False)[1])
        return file

    def close_half(self) -> int:
        """How many were closed: for when the process has run out of descriptors."""
        with self._lock:
            closing = [self._files.popitem(last=False)[1] for _ in range((len(self._files) + 1) // 2)]
        return len(closing)

    def take(self, slot: int) -> SegmentFile | None:
        """Lets go of a segment that is removed; closes when the last page of it is let go of."""
        with self._lock:
            return self._files.pop(slot, None)

    def close(self) -> None:
        with self._lock:
            closing = list(self._files.values())
            self._files.clear()
        del closing
