"""What is on disk, in memory: a dictionary of pages and a record for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from kara_cache.page import PageId
from kara_worker.page_file import FoundPage, PageEntry

Placed = tuple[PageId, PageEntry]
_SHARED_ENTRIES = 1 << 16
_make_page: Callable[[tuple[bytes, int]], PageId] = partial(tuple.__new__, PageId)  # in half the time


class FileRecord:
    """One version of one file, as far as it is here."""

    __slots__ = ("bytes", "file_id", "last_index", "pages", "path")

    def __init__(self, file_id: bytes) -> None:
        self.file_id = file_id
        self.path: str | None = None  # None: in the headers only, "": not even there
        self.pages = 0
        self.bytes = 0
        self.last_index = 0


class PageIndex:
    """Not thread-safe: guarded by the store's lock.

    About 160 bytes a page and 250 a file; entries and file ids are shared between pages.
    """

    def __init__(self) -> None:
        self._pages: dict[PageId, PageEntry] = {}
        self._files: dict[bytes, FileRecord] = {}
        self._entries: dict[PageEntry, PageEntry] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, page: PageId) -> PageEntry | None:
        return self._pages.get(page)

    def add(self, page: PageId, entry: PageEntry, path: str) -> PageId:
        """A page that is not there yet. Returns the page with shared parts, to be kept instead."""
        if len(self._entries) > _SHARED_ENTRIES:
            self._entries.clear()
        entry = self._entries.setdefault(entry, entry)
        record = self._files.get(page.file_id)
        if record is None:
            record = self._files[page.file_id] = FileRecord(page.file_id)
        page = PageId(record.file_id, page.index)
        self._pages[page] = entry
        record.pages += 1
        record.bytes += entry.size
        record.last_index = max(record.last_index, page.index)
        record.path = record.path or path
        return page

    def add_found(self, found: Iterable[FoundPage]) -> tuple[list[Placed], list[Placed]]:
        """Pages of an earlier process: those that are new, and second files of pages that are known."""
        new, spare = [], []
        files, pages = self._files, self._pages
        for file_id, number, entry in found:
            record = files.get(file_id) or FileRecord(file_id)
            page = _make_page((record.file_id, number))
            known = pages.setdefault(page, entry)
            if known is not entry:
                if known != entry:
                    spare.append((page, entry))
                continue
            files[record.file_id] = record
            record.pages += 1
            record.bytes += entry.size
            if number > record.last_index:
                record.last_index = number
            new.append((page, entry))
        return new, spare

    def pop(self, page: PageId) -> PageEntry | None:
        entry = self._pages.pop(page, None)
        if entry is not None:
            record = self._files[page.file_id]
            record.pages -= 1
            record.bytes -= entry.size
            if not record.pages:
                del self._files[page.file_id]
        return entry

    def file(self, file_id: bytes) -> FileRecord | None:
        return self._files.get(file_id)

    def files(self) -> list[FileRecord]:
        return list(self._files.values())

    def pages(self) -> list[PageId]:
        return list(self._pages)

    def pages_in(self, directory: int) -> list[PageId]:
        return [page for page, entry in self._pages.items() if entry.directory == directory]

    def pages_of(self, records: list[FileRecord]) -> Iterator[PageId]:
        """Pages of these files. By probing where the files are dense, by a walk over all pages where not."""
        dense = sum(record.last_index + 1 for record in records) <= len(self._pages)
        if dense:
            candidates = (PageId(r.file_id, index) for r in records for index in range(r.last_index + 1))
            return (page for page in candidates if page in self._pages)
        wanted = {record.file_id for record in records}
        return (page for page in self.pages() if page.file_id in wanted)
