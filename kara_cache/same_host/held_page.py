"""An open page of a worker on this host: its descriptor, and the header that makes it trustworthy."""

from __future__ import annotations

import os

from kara_cache.cached_file import CachedFile
from kara_cache.errors import FormatError
from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_cache.page_record import unpack


class HeldPage:
    """An open page with a checked header. The descriptor closes with the last thread that uses it."""

    __slots__ = (
        "__weakref__", "block_bytes", "block_sums", "fd", "header", "in_own_file", "length", "memory",
        "renew_at", "segment", "start", "touch_at",
    )  # fmt: skip

    def __init__(
        self,
        fd: int,
        header: PageHeader,
        renew_at: float,
        start: int = HEADER_BYTES,
        *,
        in_own_file: bool = False,
    ) -> None:
        self.fd = fd
        self.in_own_file = in_own_file  # which is never written again and never cut: mapped without a lock
        self.segment = 0  # inode of the segment that is mapped for it
        self.memory: memoryview | None = None  # the data, mapped and compared with the page's sum
        self.start = start  # of the data in fd
        self.header = header
        self.length = header.length
        self.block_bytes = header.block_bytes
        self.block_sums = header.block_sums
        self.renew_at = renew_at
        self.touch_at = 0.0  # uses before then are one with the last that moved the page to the end

    def __del__(self) -> None:
        os.close(self.fd)


class UnopenedPage:
    """A page that came along with a read, its header not looked at yet: most of a shuffled pass never are."""

    __slots__ = ("fd", "place", "renew_at")

    def __init__(self, fd: int, place: tuple[int, int] | None, renew_at: float) -> None:
        self.fd = fd
        self.place = place
        self.renew_at = renew_at

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def read_header(
    fd: int, place: tuple[int, int] | None, file: CachedFile, index: int, page_bytes: int
) -> PageHeader | None:
    """The header, if it is the one of this page of this version of the file."""
    try:
        if place is None:
            header = PageHeader.decode(os.pread(fd, HEADER_BYTES, 0))
        else:
            header = unpack(os.pread(fd, HEADER_BYTES, place[0]))
    except (OSError, FormatError):
        return None
    expected = min(page_bytes, file.size - index * page_bytes)
    if (
        header.page != PageId(file.file_id, index)
        or header.page_bytes != page_bytes
        or header.length != expected
    ):
        return None
    return header
