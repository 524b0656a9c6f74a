"""What is on disk, in memory: a dictionary of pages and a record for each file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from kara_cache.page import PageId
from kara_worker.eviction.base import PageKey
from kara_worker.pages.page_file import PageEntry

E = TypeVar("E")  # what is known of a page without reading it: where it is, above all
_SHARED_ENTRIES = 1 << 16


class FileRecord(Struct, gc=False, eq=False):
    """One version of one file, as far as it is here. Can be in no cycle, so the collector need not look."""

    file_id: bytes
    path: str | None = None  # None: in the headers only, "": not even there
    group: str = ""  # `group_token` of its mount, where entries do not have it
    pages: int = 0
    bytes: int = 0
    last_index: int = 0


class PageIndex(Generic[E]):
    """Not thread-safe: guarded by the store's lock. A kind of store says what its entries mean."""

    def __init__(self) -> None:
        self._pages: dict[PageKey, E] = {}
        self._files: dict[bytes, FileRecord] = {}

    def size(self, entry: E) -> int:
        """Bytes of the page on disk."""
        raise NotImplementedError

    def group(self, page: PageKey, entry: E) -> str:
        """Of a page that is here: the token of its mount."""
        raise NotImplementedError

    def directory(self, entry: E) -> int:
        """Number of the directory that the page is in."""
        raise NotImplementedError

    def _shared(self, entry: E) -> E:
        """An equal one that is kept already."""
        return entry

    def _came(self, page: PageKey, entry: E) -> None:
        """A page is in the books now."""

    def _left(self, entry: E) -> None:
        """It is not any more."""

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, page: PageKey) -> E | None:
        return self._pages.get(page)

    def add(self, page: PageId, entry: E, path: str, group: str) -> PageKey:
        """A page that is not there yet. Returns its key, to be kept by others, too."""
        entry = self._shared(entry)
        record = self._files.get(page.file_id)
        if record is None:
            record = self._files[page.file_id] = FileRecord(page.file_id)
        key = (record.file_id, page.index)
        self._pages[key] = entry
        record.pages += 1
        record.bytes += self.size(entry)
        if page.index > record.last_index:
            record.last_index = page.index
        record.path = record.path or path
        record.group = group
        self._came(key, entry)
        return key

    def add_found(
        self, found: Iterable[tuple[bytes, int, E]]
    ) -> tuple[list[tuple[PageKey, E]], list[tuple[PageId, E]]]:
        """Pages of an earlier process: those that are new, and second places of pages that are known."""
        new, spare = [], []
        files, pages, size, came = self._files, self._pages, self.size, self._came
        for file_id, number, entry in found:
            record = files.get(file_id) or FileRecord(file_id)
            page = (record.file_id, number)
            known = pages.setdefault(page, entry)
            if known is not entry:
                if known != entry:
                    spare.append((PageId(*page), entry))
                continue
            files[record.file_id] = record
            record.pages += 1
            record.bytes += size(entry)
            if number > record.last_index:
                record.last_index = number
            came(page, entry)
            new.append((page, entry))
        return new, spare

    def move(self, page: PageId, entry: E) -> None:
        """The page, which is here, has been copied to another place."""
        known = self._pages[page]
        self._pages[page] = entry
        self._came(page, entry)
        self._left(known)

    def pop(self, page: PageKey) -> E | None:
        entry = self._pages.pop(page, None)
        if entry is not None:
            record = self._files[page[0]]
            record.pages -= 1
            record.bytes -= self.size(entry)
            if not record.pages:
                del self._files[page[0]]
            self._left(entry)
        return entry

    def file(self, file_id: bytes) -> FileRecord | None:
        return self._files.get(file_id)

    def files(self) -> list[FileRecord]:
        return list(self._files.values())

    def pages(self) -> list[PageKey]:
        return list(self._pages)

    def pages_in(self, directory: int) -> list[PageKey]:
        return [page for page, entry in self._pages.items() if self.directory(entry) == directory]

    def pages_of(self, records: list[FileRecord]) -> Iterator[PageId]:
        """Pages of these files. By probing where the files are dense, by a walk over all pages where not."""
        dense = sum(record.last_index + 1 for record in records) <= len(self._pages)
        if dense:
            candidates = (PageId(r.file_id, index) for r in records for index in range(r.last_index + 1))
            return (page for page in candidates if page in self._pages)
        wanted = {record.file_id for record in records}
        return (PageId(*page) for page in self.pages() if page[0] in wanted)


class FileIndex(PageIndex[PageEntry]):
    """Of pages that have a file each.

    About 160 bytes a page and 250 a file; entries and file ids are shared between pages.
    """

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[PageEntry, PageEntry] = {}

    def size(self, entry: PageEntry) -> int:
        return entry.size

    def group(self, page: PageKey, entry: PageEntry) -> str:
        return entry.group

    def directory(self, entry: PageEntry) -> int:
        return entry.directory

    def _shared(self, entry: PageEntry) -> PageEntry:
        if len(self._entries) > _SHARED_ENTRIES:
            self._entries.clear()
        return self._entries.setdefault(entry, entry)
