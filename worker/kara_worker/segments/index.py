"""The index of pages in segments: for each page one number that says where it is."""

from __future__ import annotations

from collections.abc import Iterator

from kara_cache.page import PageId
from kara_worker.pages.page_index import FileRecord, PageIndex
from kara_worker.segments.segment import PLACE_BITS, Segment, size_in, slot_in

_PLACE_MASK = (1 << PLACE_BITS) - 1


class SegmentIndex(PageIndex[int]):
    """About 160 bytes a page and 300 a file. Guarded by the store's lock, but for looking segments up."""

    def __init__(self) -> None:
        super().__init__()
        self._slots: list[Segment | None] = []
        self._free: list[int] = []

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

    def adopt(
        self,
        pages: dict[PageId, int],
        segments: dict[int, Segment],
        files: dict[bytes, tuple[str, str]],
        spare: list[tuple[PageId, int]],
    ) -> Iterator[tuple[int, str]]:
        """Pages of an earlier process; gives size and group. Their entries have numbers in place of slots.

        Second places of pages that are known are added to `spare`. One loop without calls of ours: it is
        what a restart takes, and pages of a file and of a segment follow each other.
        """
        known, records = self._pages, self._files
        number, segment, base = -1, None, 0
        last_id, record = b"", FileRecord(b"")
        for page, found in pages.items():
            if found >> PLACE_BITS != number:
                number = found >> PLACE_BITS
                segment = segments.get(number)
                base = segment.slot << PLACE_BITS if segment is not None else 0
            if segment is None:
                continue
            entry = base | found & _PLACE_MASK
            if page in known:
                spare.append((page, entry))
                continue
            file_id, index = page
            if file_id is not last_id:
                last_id = file_id
                if (there := records.get(file_id)) is None:
                    there = records[file_id] = FileRecord(file_id)
                    there.path, there.group = files.get(file_id, ("", ""))
                record = there
            size = size_in(entry)
            known[page] = entry
            segment.live += size
            segment.pages.append(page)
            record.pages += 1
            record.bytes += size
            if index > record.last_index:
                record.last_index = index
            yield size, record.group

    def _came(self, page: PageId, entry: int) -> None:
        segment = self._slots[slot_in(entry)]
        assert segment is not None
        segment.live += size_in(entry)
        segment.pages.append(page)

    def _left(self, entry: int) -> None:
        segment = self._slots[slot_in(entry)]
        if segment is not None:
            segment.live -= size_in(entry)
