"""Pages on SSD, many to a file: 5 to 30 times cheaper to replace than files of their own."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from kara_cache.errors import ConfigError
from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_worker.eviction.base import EvictionPolicy
from kara_worker.pages.disk_page_store import DiskPageStore
from kara_worker.pages.file_page_store import check_options
from kara_worker.pages.open_pages import OpenPages
from kara_worker.pages.page_file import group_token
from kara_worker.pages.page_space import PageSpace
from kara_worker.segments.index import SegmentIndex
from kara_worker.segments.migration import PageMigration
from kara_worker.segments.quarantine import HELD_S, Quarantine
from kara_worker.segments.segment import MOST_SEGMENT_BYTES, allocate
from kara_worker.segments.shelf import SegmentShelf

log = logging.getLogger(__name__)

_USUAL_SEGMENT_BYTES = 32 << 20  # removing one takes milliseconds; twice as large is no cheaper (measured)
_SEGMENTS = 64  # at least so many, or the last few would hold up too much of the cache
_SPARE_PART = 32  # of the capacity, for holes: with none, room for a page would take segments of victims
_OPEN_SEGMENTS_PART = 4  # of the descriptors that the process may have
_PROBE = ".kara-segments"
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class SegmentPageStore(DiskPageStore[int]):
    """A `PageStore` over one or more directories, each of which belongs to this process alone.

    Bytes are those of pages, as they lie in their segments; the segments themselves, with what has left
    them, take at most the capacity and one segment more. The journal takes 40 bytes a page.
    """

    def __init__(
        self,
        directories: Sequence[str | os.PathLike[str]],
        capacity_bytes: int,
        page_bytes: int,
        policy: EvictionPolicy,
        *,
        high_watermark: float = 0.95,
        low_watermark: float = 0.90,
        open_pages: int = 8192,
        min_free_bytes: int | None = None,
        probe_s: float = 30.0,
        quotas: Mapping[str, int] = MappingProxyType({}),
        segment_bytes: int | None = None,
        quarantine_s: float = HELD_S,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Raises ConfigError for directories that are not ours, and for options that cannot be meant.

        The arguments are those of `FilePageStore`, and

        Args:
            open_pages: headers that are kept in memory; of 1 MiB pages each takes 3 KiB.
            segment_bytes: default 32 MiB, less for a small cache, a page at least.
            quarantine_s: how long a removed segment is kept for processes on this host that may read it.
        """
        check_options(directories, capacity_bytes, page_bytes, high_watermark, low_watermark)
        page = page_bytes + HEADER_BYTES
        wanted = segment_bytes or min(_USUAL_SEGMENT_BYTES, capacity_bytes // _SEGMENTS)
        segment = max(1, min(wanted, MOST_SEGMENT_BYTES) // page) * page
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = 1 << 16 if soft == resource.RLIM_INFINITY else soft
        if capacity_bytes // segment > descriptors // 2:  # every open page might be of another segment
            open_pages = min(open_pages, descriptors // 2)
        index = SegmentIndex()
        space = PageSpace(
            capacity_bytes,
            policy,
            OpenPages(open_pages, of_files=False),
            index,
            high=high_watermark,
            low=low_watermark,
            spare_bytes=capacity_bytes // _SPARE_PART if segment > page else 0,
            quotas={group_token(group): count for group, count in quotas.items()},
        )
        shelf = SegmentShelf(
            directories,
            page_bytes,
            space,
            index,
            segment_bytes=segment,
            open_segments=max(1, descriptors // _OPEN_SEGMENTS_PART),
            min_free_bytes=min_free_bytes,
            quarantine=Quarantine(quarantine_s, time.monotonic),
        )
        # before there are threads, of which one would have the interpreter at each look at a directory
        self._migration = PageMigration(shelf.directories, page_bytes, self._take_over)
        super().__init__(space, shelf, page_bytes, probe_s=probe_s, clock_ns=clock_ns)
        if not self._migration.done:
            shelf.elsewhere = self._bring
            self._threads.append(threading.Thread(target=self._migrate, name="page-migration", daemon=True))
            self._threads[-1].start()

    def free(self, path: str, *, recursive: bool, reason: str = "free") -> tuple[int, int]:
        if not self._migration.done:
            self._migration.free(path, recursive=recursive)
        return super().free(path, recursive=recursive, reason=reason)

    def _take_over(self, header: PageHeader, data: memoryview) -> bool:
        kept = not self._closing and self.put(header, data)
        if not kept and self._closing:
            raise InterruptedError
        return kept

    def _bring(self, page: PageId) -> bool:
        """A page that may be in a file of its own still."""
        if self._migration.done or self._closing:
            return False
        self._migration.find(page)
        return True

    def _migrate(self) -> None:
        """A thread's life, once in the life of a directory."""
        try:
            log.info("pages in files of their own: moving them to segments")
            moved = self._migration.run(lambda: self._closing)
            log.info("pages in files of their own: %d moved to segments", moved)
        except Exception:  # the top of a thread
            log.exception("the move to segments ended early; the next start goes on with it")


def can_hold_segments(directory: str | os.PathLike[str]) -> bool:
    """Whether the file system of the directory, or of the nearest one above it that is there, reserves
    room for files. Leaves no trace, for the directory may be somebody else's. Raises ConfigError where
    it cannot be tried."""
    place = os.path.realpath(directory)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    try:
        fd = _nameless(place)
    except OSError as exc:
        raise ConfigError(f"page directory {directory}: {exc.strerror or exc}") from exc
    try:
        allocate(fd, HEADER_BYTES)
    except OSError as exc:
        return exc.errno not in _CANNOT
    finally:
        os.close(fd)
    return True


def _nameless(place: str) -> int:
    """A new file there that goes when it is closed. Raises OSError."""
    try:
        return os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno not in (*_CANNOT, errno.EISDIR, errno.ENOENT):  # what file systems without it say
            raise
    path = os.path.join(place, f"{_PROBE}-{os.getpid()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd
