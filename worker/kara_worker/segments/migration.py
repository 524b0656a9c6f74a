"""Pages in files of their own, which an earlier version or setting left, move into segments."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from kara_cache.page import PageHeader, PageId
from kara_worker.pages.page_directory import PageDirectory
from kara_worker.pages.page_file import (
    SHARDS,
    PageDamaged,
    PageEntry,
    PageNames,
    check_data,
    open_page,
    page_name,
    shard_of,
)

log = logging.getLogger(__name__)

Put = Callable[[PageHeader, memoryview], bool]


class PageMigration:
    """Thread-safe. Each page is put as any other, with the policy and the capacity that count for others;
    its file goes afterwards, whether it was kept or not. So the disk never holds it twice for long,
    and a crash leaves pages of both kinds, of which the rest moves at the next start. `put` raises
    InterruptedError where it refused only because the store is being closed.
    """

    def __init__(self, directories: Sequence[PageDirectory], page_bytes: int, put: Put) -> None:
        self._page_bytes = page_bytes
        self._put = put
        self._lock = threading.Lock()  # one page at a time; guards _freed
        self._freed: list[tuple[str, bool]] = []
        self._names = {d.number: PageNames(d.number, page_bytes) for d in directories}
        self._directories = [directory for directory in directories if _has_files(directory)]
        self.done = not self._directories

    def run(self, stop: Callable[[], bool]) -> int:
        """Moves everything, until `stop` says so; the number of pages that it kept."""
        moved = 0
        for directory in self._directories:
            for shard in range(SHARDS):
                for page, entry in self._pages(directory, shard):
                    if stop():
                        return moved
                    moved += self._take(page, entry, directory)
                with suppress(OSError):  # not empty: somebody else's file
                    os.rmdir(directory.path(shard, ""))
        self.done = True
        return moved

    def find(self, page: PageId) -> None:
        """Moves one page now, because somebody wants it."""
        for directory in self._directories:
            for known, entry in self._pages(directory, shard_of(page)):
                if known == page:
                    self._take(page, entry, directory)

    def free(self, path: str, *, recursive: bool) -> None:
        """Pages of these files are not to come in any more."""
        with self._lock:
            self._freed.append((path.strip("/"), recursive))

    def _pages(self, directory: PageDirectory, shard: int) -> Iterator[tuple[PageId, PageEntry]]:
        try:
            names = directory.names(shard)
        except OSError as exc:
            log.warning("%s: %s", directory.root, exc)
            return
        for file_id, index, entry in filter(None, map(self._names[directory.number].parse, names)):
            yield PageId(file_id, index), entry

    def _take(self, page: PageId, entry: PageEntry, directory: PageDirectory) -> bool:
        """Puts the page and removes its file, or the file alone if it is damaged, freed or refused."""
        with self._lock:
            path, kept = directory.path(shard_of(page), page_name(page, entry)), False
            try:
                stored = open_page(path, page, entry, self._page_bytes)
                check_data(stored)
                data = os.pread(stored.fd, stored.header.length, stored.offset)
                kept = self._wanted(stored.header) and self._put(stored.header, memoryview(data))
            except (FileNotFoundError, InterruptedError):  # somebody was first; the store is being closed
                return False
            except (PageDamaged, OSError, ValueError) as exc:
                log.warning("a page file is not taken over: %s", exc)
            with suppress(OSError):
                os.unlink(path)
            return kept

    def _wanted(self, header: PageHeader) -> bool:
        path = header.path.strip("/")
        return not any(
            path == freed or (recursive and (not freed or path.startswith(f"{freed}/")))
            for freed, recursive in self._freed
        )


def _has_files(directory: PageDirectory) -> bool:
    try:
        return any(len(name) == 2 for name in os.listdir(f"{directory.root}/pages"))
    except OSError:  # there are none, or a disk fails, of which the first page will tell
        return False
