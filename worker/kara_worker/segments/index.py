"""The index of pages in segments: for each page one number that says where it is."""

from __future__ import annotations

from kara_cache.page_record import UNIT_BYTES
from kara_worker.eviction.base import PageKey
from kara_worker.pages.page_index import FileRecord, PageIndex
from kara_worker.segments.segment import COUNT_MASK, PLACE_BITS, Segment, size_in, slot_in

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

    def group(self, page: PageKey, entry: int) -> str:
        record = self._files.get(page[0])
        return record.group if record is not None else ""

    def directory(self, entry: int) -> int:
        segment = self.segment(entry)
        return segment.directory if segment is not None else -1

    def adopt(
        self,
        pages: dict[PageKey, int],
        segments: dict[int, Segment],
        files: dict[bytes, FileRecord],
        spare: list[tuple[PageKey, int]],
    ) -> dict[str, int]:
        """Pages of an earlier process; gives the bytes of each group. Their entries have numbers in place of
        slots.

        `pages` and `files` are ours from now on: an index that was empty goes on with the very dictionary,
        which spares a restart a second one. Second places of pages that are known are added to `spare`.
        """
        if self._pages:
            for page in [page for page in pages if page in self._pages]:
                found = pages.pop(page)
                if (segment := segments.get(found >> PLACE_BITS)) is not None:
                    spare.append((page, segment.slot << PLACE_BITS | found & _PLACE_MASK))
            self._pages.update(pages)
        else:
            self._pages = pages
        return self._enter(pages, segments, files)

    def _enter(
        self, pages: dict[PageKey, int], segments: dict[int, Segment], files: dict[bytes, FileRecord]
    ) -> dict[str, int]:
        """One loop without calls of ours: it is what a restart takes, and pages of a file and of a segment
        follow each other."""
        known, lost = self._pages, []
        sizes: dict[str, int] = {}
        shared: dict[int, int] = {}  # one copy of each: most small files are of few sizes
        number, segment, base = -1, Segment(-1, -1, "", 0, sealed=True), 0
        last_id, record, last_index, count, units = b"", FileRecord(b""), 0, 0, 0
        append = segment.pages.append

        def end_run() -> None:
            size = shared.setdefault(units * UNIT_BYTES, units * UNIT_BYTES)
            segment.live += size
            record.pages += count
            record.bytes = record.bytes + size if record.bytes else size
            record.last_index = max(record.last_index, last_index)
            sizes[record.group] = sizes.get(record.group, 0) + size

        for page, found in pages.items():
            file_id, index = page
            if found >> PLACE_BITS != number or file_id is not last_id:
                if count:
                    end_run()
                last_index = count = units = 0
                number, last_id = found >> PLACE_BITS, file_id
                if number not in segments:
                    number = -1
                    lost.append(page)
                    continue
                segment = segments[number]
                base, append = segment.slot << PLACE_BITS, segment.pages.append
                record = self._record(file_id, files)
            entry = base | found & _PLACE_MASK
            if entry != found:
                known[page] = entry
            append(page)
            count += 1
            units += found & COUNT_MASK
            if index > last_index:
                last_index = index
        if count:
            end_run()
        for page in lost:
            del known[page]
        return sizes

    def _record(self, file_id: bytes, files: dict[bytes, FileRecord]) -> FileRecord:
        record = self._files.get(file_id)
        if record is None:
            record = self._files[file_id] = files.get(file_id) or FileRecord(file_id, "")
        return record

    def _came(self, page: PageKey, entry: int) -> None:
        segment = self._slots[slot_in(entry)]
        assert segment is not None
        segment.live += size_in(entry)
        segment.pages.append(page)

    def _left(self, entry: int) -> None:
        segment = self._slots[slot_in(entry)]
        if segment is not None:
            segment.live -= size_in(entry)
