"""A segment: a file of many pages, written once from front to back, read until it is removed as a whole.

No region that anybody may have seen is ever written again. What makes room is the removal of the file, and
an open descriptor keeps the bytes of a removed file: so whatever is still being sent, or read by a process
on this host, stays as it was. The file of a segment that nobody ever opened for reading may become the next
segment: to write over memory that the kernel has is half the work of giving it back and asking for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from kara_cache.page import HEADER_BYTES, PageHeader
from kara_cache.page_record import LARGE_BYTES, LARGE_UNIT_BYTES, UNIT_BYTES
from kara_worker.eviction.base import PageKey
from kara_worker.pages.page_store import StoredPage

NEVER = (1 << 32) - 1  # in steps: later than any page was made
OPEN_MODE, SEALED_MODE = 0o600, 0o400  # of a file that gets pages, and of one that gets no more
_COUNT_BITS = 21  # of an offset or a size in units: 128 MiB
PLACE_BITS = 2 * _COUNT_BITS
COUNT_MASK = (1 << _COUNT_BITS) - 1
MOST_SEGMENT_BYTES = UNIT_BYTES << (_COUNT_BITS - 1)


def place_of(offset: int, size: int) -> int:
    """Both in one number, multiples of UNIT_BYTES: it takes 32 bytes of memory, a tuple of three 150."""
    return offset // UNIT_BYTES << _COUNT_BITS | size // UNIT_BYTES


def entry_of(slot: int, place: int) -> int:
    """What an index knows of a page: which segment, and where in it."""
    return slot << PLACE_BITS | place


def slot_in(entry: int) -> int:
    return entry >> PLACE_BITS


def place_in(entry: int) -> int:
    return entry & ((1 << PLACE_BITS) - 1)


def offset_in(entry: int) -> int:
    return (entry >> _COUNT_BITS & COUNT_MASK) * UNIT_BYTES


def size_in(entry: int) -> int:
    return (entry & COUNT_MASK) * UNIT_BYTES


class Segment:
    """What is known of one file."""

    __slots__ = (
        "bytes",
        "directory",
        "files",
        "live",
        "newest",
        "number",
        "oldest",
        "pages",
        "passed_at",
        "path",
        "pending",
        "sealed",
        "seen",
        "slot",
    )

    def __init__(self, directory: int, number: int, path: str, size: int, *, sealed: bool) -> None:
        self.directory = directory  # number in the store's list
        self.number = number  # never used again in its directory
        self.path = path
        self.slot = -1  # in the index; -1: in none, so it may be removed or is
        self.bytes = size  # on disk
        self.live = 0  # of them, of pages that are in the books
        self.pages: list[PageKey] = []  # in the order they came, also those that have left
        self.oldest, self.newest = NEVER, 0  # steps in which its pages were made
        self.pending = 0  # writes on their way
        self.sealed = sealed
        self.seen = False  # whether anybody may have had it open for reading, ever
        self.passed_at = 0.0  # monotonic; when a descriptor of it last went to another process
        self.files: list[weakref.ref[SegmentFile]] = []  # open now, or some time ago


class SegmentFile:
    """A descriptor for reading; closes with the last page that uses it."""

    __slots__ = ("__weakref__", "fd", "segment")

    def __init__(self, segment: Segment) -> None:
        """Raises OSError.

        In this order: whoever removes a segment takes its slot away first and then looks whether it was
        seen, so one of the two notices the other.
        """
        self.fd = -1
        segment.seen = True
        if segment.slot < 0:
            raise FileNotFoundError(errno.ENOENT, "the segment was removed", segment.path)
        self.fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.segment = segment
        segment.files = [file for file in segment.files if file() is not None]
        segment.files.append(weakref.ref(self))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.fd >= 0:
            close(self.fd)


class SegmentPage(StoredPage):
    """A page of a segment. Holds the segment's file."""

    __slots__ = ("_file", "_start")

    def __init__(self, file: SegmentFile, start: int, data_start: int, header: PageHeader) -> None:
        super().__init__(file.fd, data_start, header)
        self._file = file
        self._start = start

    @property
    def directory(self) -> int:
        return self._file.segment.directory

    def hand_over(self) -> tuple[int, int]:
        self._file.segment.passed_at = monotonic()
        return self._start, self.offset


class SegmentHead:
    """The end of a segment, where pages are added. The descriptor closes with the last writer."""

    def __init__(self, segment: Segment, old: Segment | None = None) -> None:
        """Makes the file, with all its blocks, out of that of a removed segment that nobody has seen, if
        there is one. Raises OSError, and leaves nothing behind then."""
        self.fd = -1
        self.segment = segment
        self.end = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        if old is not None:
            with suppress(FileNotFoundError):  # somebody removed it
                os.rename(old.path, segment.path)
        self.fd = os.open(segment.path, flags if old is not None else flags | os.O_EXCL, OPEN_MODE)
        try:
            if old is not None and old.bytes > segment.bytes:
                os.ftruncate(self.fd, segment.bytes)
            allocate(self.fd, segment.bytes)
        except BaseException:
            os.unlink(segment.path)
            raise

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.fd >= 0:
            close(self.fd)

    def take(self, size: int, unit: int) -> int | None:
        """Where a record of `size` bytes begins that has the rest of the segment to itself; None: no room."""
        start = -(-self.end // unit) * unit
        if start + size > self.segment.bytes:
            return None
        self.end = start + size
        return start

    def has_room(self, size: int) -> bool:
        """For a record of so many bytes."""
        unit = LARGE_UNIT_BYTES if size >= HEADER_BYTES + LARGE_BYTES else UNIT_BYTES
        return -(-self.end // unit) * unit + size <= self.segment.bytes

    def write(self, start: int, header: bytes, data: memoryview) -> None:
        """Both parts, whole. Raises OSError."""
        rest = [memoryview(part) for part in (header, data) if part]
        while rest:
            count = os.pwritev(self.fd, rest, start)
            if not count:
                raise OSError(errno.EIO, "nothing was written")
            start += count
            while rest and count >= len(rest[0]):
                count -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][count:]

    def lost(self) -> OSError | None:
        """What is wrong if nobody would find what is added."""
        try:
            if os.fstat(self.fd).st_nlink:
                return None
        except OSError as exc:
            return exc
        return FileNotFoundError(errno.ENOENT, "somebody removed the segment", self.segment.path)

    def seal(self) -> int:
        """Gives back what was not used; the bytes of it. Raises OSError."""
        segment = self.segment
        spare = segment.bytes - self.end
        if spare:
            os.ftruncate(self.fd, self.end)
            segment.bytes = self.end
        os.fchmod(self.fd, SEALED_MODE)
        return spare


def allocate(fd: int, size: int) -> None:
    """Reserves the blocks of a file. Raises OSError: EOPNOTSUPP where the file system cannot, unlike
    posix_fallocate, which writes zeros there."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fallocate = libc.fallocate64
    except AttributeError:
        os.posix_fallocate(fd, 0, size)
        return
    result = fallocate(ctypes.c_int(fd), ctypes.c_int(0), ctypes.c_int64(0), ctypes.c_int64(size))
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
