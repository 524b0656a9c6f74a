"""The page files of a store over all its directories: the I/O half. The books are kept in `PageSpace`."""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice

from kara_cache.checksum import checksum
from kara_cache.errors import ConfigError
from kara_cache.page import PageHeader, PageId
from kara_worker.pages.directory_faults import DirectoryFaults
from kara_worker.pages.page_directory import PageDirectory, is_full
from kara_worker.pages.page_file import (
    CREATED_STEP_NS,
    SHARDS,
    OpenPage,
    PageDamaged,
    PageEntry,
    PageNames,
    check_data,
    footprint,
    open_page,
    page_name,
    shard_of,
)
from kara_worker.pages.page_shelf import Written
from kara_worker.pages.page_space import PageSpace

log = logging.getLogger(__name__)

_LEAST_FREE_BYTES = 64 << 20
_LEAST_FREE_PART = 100  # one of so many bytes of a file system stays free: ext4 and xfs slow down when full
_FOUND_BATCH = 512  # found pages that enter the books under one lock: about 1 ms
NOT_THE_PAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class PageFiles:
    """Thread-safe. Faults of a disk end here: counted, the page or the whole directory forgotten."""

    def __init__(
        self,
        roots: Sequence[str | os.PathLike[str]],
        page_bytes: int,
        space: PageSpace[PageEntry],
        *,
        min_free_bytes: int | None,
    ) -> None:
        """Raises ConfigError."""
        self._page_bytes = page_bytes
        self._space = space
        self._min_free_bytes = min_free_bytes
        self._locks = [threading.Lock() for _ in range(SHARDS)]  # a shard's renames, unlinks and listing
        self._faults = DirectoryFaults(
            space,
            give_up=lambda directory: space.forget_directory(directory.number),
            take_back=lambda directory: None,
            listed=lambda: self.list_all(lambda: False),
        )
        self.directories = [
            PageDirectory(root, number=number, page_bytes=page_bytes) for number, root in enumerate(roots)
        ]
        self._names = [PageNames(number, page_bytes) for number in range(len(roots))]
        try:
            for directory in self.directories:
                directory.open()
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Gives up the locks of the directories."""
        self._faults.close()
        for directory in self.directories:
            directory.close()

    @property
    def unlisted(self) -> bool:
        """Whether there may be pages that are not in the books yet."""
        return any(directory.unlisted for directory in self.directories)

    def find(self, page: PageId) -> PageEntry | None:
        """The page's entry; lists the page's shard where that has not been done."""
        entry = self._space.find(page)
        if entry is None and self.unlisted:
            self.list_shard(shard_of(page))
            entry = self._space.find(page)
        return entry

    def list_all(self, stop: Callable[[], bool]) -> None:
        for shard in range(SHARDS):
            if stop():
                return
            self.list_shard(shard)

    def list_shard(self, shard: int) -> None:
        """Puts what is in these directories (one in 256) into the books. Does nothing the second time."""
        failures: list[tuple[PageDirectory, OSError]] = []
        with self._locks[shard]:
            for directory in self.directories:
                if shard in directory.unlisted:
                    try:
                        self._list(directory, shard)
                    except OSError as exc:
                        failures.append((directory, exc))
                    directory.unlisted.discard(shard)
        for directory, error in failures:
            self._faults.failed(directory, error)

    def _list(self, directory: PageDirectory, shard: int) -> None:
        found = filter(None, map(self._names[directory.number].parse, directory.names(shard)))
        while batch := list(islice(found, _FOUND_BATCH)):
            for page, entry in self._space.add_found(batch):
                with suppress(OSError):
                    os.unlink(directory.path(shard, page_name(page, entry)))

    def open(self, page: PageId, entry: PageEntry, *, whole: bool = False) -> OpenPage | None:
        """The page, its header checked, with `whole` also its data; None, and dropped, if that fails."""
        directory, shard = self.directories[entry.directory], shard_of(page)
        path = directory.path(shard, page_name(page, entry))
        try:
            try:
                stored = open_page(path, page, entry, self._page_bytes)
            except FileNotFoundError:
                with self._locks[shard]:  # it may have left and come back, under the same name
                    stored = open_page(path, page, entry, self._page_bytes)
            except OSError as exc:
                if exc.errno not in NOT_THE_PAGE or not self._space.close_half():
                    raise
                stored = open_page(path, page, entry, self._page_bytes)
            if whole:
                check_data(stored)
        except PageDamaged as exc:
            log.warning("dropped a page: %s", exc)
            if self.drop(page, "corrupt", entry=entry):
                self._space.damaged(exc.where)
            return None
        except FileNotFoundError:
            self.drop(page, "lost", entry=entry)
            return None
        except OSError as exc:
            self._faults.failed(directory, exc)
            if exc.errno not in NOT_THE_PAGE:
                self.drop(page, "lost", entry=entry)
            return None
        directory.worked()
        return stored

    def is_older(self, page: PageId, entry: PageEntry, cutoff_ns: int) -> bool:
        """Names tell the age to 69 s; only a page at the edge has its header read."""
        if entry.created * CREATED_STEP_NS >= cutoff_ns:
            return False
        if (entry.created + 1) * CREATED_STEP_NS <= cutoff_ns:
            return True
        stored = self.open(page, entry)
        return stored is not None and stored.header.created_ns < cutoff_ns

    def size_of(self, header: PageHeader) -> int:
        return footprint(header.length)

    def choose(
        self, page: PageId, size: int, *, spare: bool = True, admitted: bool = False
    ) -> PageDirectory | None:
        """Where a new page goes: by rendezvous hashing, weighted by the size of the file systems, among
        those that have room, by default beyond the bytes that are to stay free; None if none has."""
        usable = [directory for directory in self.directories if directory.usable]
        if len(usable) > 1:
            usable.sort(key=lambda directory: score(page, directory))
        for directory in usable:
            least = least_free(directory, self._min_free_bytes) if spare else 0
            try:
                if directory.free_bytes() >= least + size:
                    return directory
            except OSError as exc:
                self._faults.failed(directory, exc)
        return None

    def write(
        self,
        directory: PageDirectory,
        header: PageHeader,
        data: memoryview,
        *,
        group: str,
    ) -> Written:
        """Writes a page whose bytes are reserved: in the books afterwards, or released and not on disk."""
        entry = PageEntry.of(directory.number, header.length, group, header.created_ns)
        page, shard, kept = header.page, shard_of(header.page), False
        try:
            temporary = directory.write(shard, header.encode(), data)
            try:
                with self._locks[shard]:
                    if self._space.find(page) is not None:
                        return Written.STORED
                    os.rename(temporary, directory.path(shard, page_name(page, entry)))
                    self._space.add(page, entry, header.path, group)
                    kept = True
            finally:
                if not kept:
                    os.unlink(temporary)
        except OSError as exc:
            self._faults.failed(directory, exc)
            return Written.FULL if is_full(exc) else Written.FAILED
        finally:
            if not kept:
                self._space.release(entry.size, entry.group)
        directory.worked()
        return Written.STORED

    def drop(self, page: PageId, reason: str, *, entry: PageEntry | None = None) -> int:
        """Bytes that were freed; 0 if the page is not there, or not that one any more."""
        taken = self._space.take(page, reason, entry=entry)
        if taken is None:
            return 0
        self.unlink([(page, taken)])
        return taken.size

    def unlink(self, victims: Iterable[tuple[PageId, PageEntry]]) -> None:
        """Removes the files of pages that have left the books, and then counts their bytes as free."""
        for page, entry in victims:
            directory, shard = self.directories[entry.directory], shard_of(page)
            try:
                with self._locks[shard]:
                    # the same page may have come back under the same name, and so have replaced this file
                    if directory.usable and self._space.find(page) != entry:
                        os.unlink(directory.path(shard, page_name(page, entry)))
            except FileNotFoundError:
                pass
            except OSError as exc:
                self._faults.failed(directory, exc)
            finally:
                self._space.release(entry.size)

    @property
    def behind(self) -> bool:
        return False

    def maintain(self) -> None:
        """Nothing: every page gives its room back by itself."""

    def revive(self) -> int:
        return self._faults.revive()


def least_free(directory: PageDirectory, configured: int | None) -> int:
    """Bytes that stay free on the directory's file system."""
    if configured is not None:
        return configured
    return max(_LEAST_FREE_BYTES, directory.total_bytes // _LEAST_FREE_PART)


def score(page: PageId, directory: PageDirectory) -> float:
    """Lowest wins; probability in proportion to `total_bytes` (weighted rendezvous hashing)."""
    drawn = checksum(b"%b%d/%d" % (page.file_id, page.index, directory.number))
    return -math.log((drawn + 1) / (1 << 64)) / directory.total_bytes
