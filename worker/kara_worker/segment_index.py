"""The index of pages in segments: for each page one number that says where it is."""

from __future__ import annotations

from kara_cache.page import PageId
from kara_worker.page_index import FileRecord, PageIndex
from kara_worker.segment import Segment, size_in, slot_in


class SegmentIndex(PageIndex[int]):
    """About 180 bytes a page and 300 a file. Guarded by the store's lock, but for looking segments up."""

    def __init__(self) -> None:
        super().__init__()
        self._slots: list[Segment | None] = []
        self._free: list[int] = []
        self.known: dict[bytes, tuple[str, str]] = {}  # path and group of files whose pages are being found

    def attach(self, segment: Segment) -> None:
        """Gives the segment a slot."""
        if self._free:
            segment.slot = self._free.pop()
            self._slots[segment.slot] = segment
        else:
            segment.slot = len(self._slots)
            self._slots.append(segment)

    def detach(self, segment: Segment) -> None:
        """Takes the slot back; an entry that somebody still holds may from now on mean another segment."""
        self._slots[segment.slot] = None
        self._free.append(segment.slot)
        segment.slot = -1

    def segment(self, entry: int) -> Segment | None:
        return self._slots[slot_in(entry)]

    def segments(self) -> list[Segment]:
        return [segment for segment in list(self._slots) if segment is not None]

    def size(self, entry: int) -> int:
        return size_in(entry)

    def group(self, page: PageId, entry: int) -> str:
        record = self._files.get(page.file_id)
        return record.group if record is not None else ""

    def directory(self, entry: int) -> int:
        segment = self.segment(entry)
        return segment.directory if segment is not None else -1

    def _record(self, file_id: bytes) -> FileRecord:
        record = FileRecord(file_id)
        record.path, record.group = self.known.get(file_id, ("", ""))
        return record

    def _came(self, page: PageId, entry: int) -> None:
        segment = self._slots[slot_in(entry)]
        assert segment is not None
        segment.live += size_in(entry)
        segment.pages.append(page)

    def _left(self, entry: int) -> None:
        segment = self._slots[slot_in(entry)]
        if segment is not None:
            segment.live -= size_in(entry)
