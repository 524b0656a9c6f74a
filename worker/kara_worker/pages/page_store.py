"""The port to pages on SSD. Implementations decide layout and locking; the laws are here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kara_cache.page import PageHeader, PageId
from kara_cache.path_rule import Priority


class StoredPage:
    """A page that is open for reading: its checked header and where its bytes are.

    Holding one keeps the bytes readable whatever eviction does; the descriptor is closed when the
    last holder lets go (CPython's reference count), so never keep `fd` without the object.
    """

    __slots__ = ("__weakref__", "fd", "head", "header", "in_memory_until", "offset", "touch_at")

    def __init__(self, fd: int, offset: int, header: PageHeader) -> None:
        self.fd = fd
        self.offset = offset  # of the first data byte in fd
        self.header = header
        # hints of who sends the page
        self.in_memory_until = 0.0  # monotonic; to look again only then
        self.touch_at = 0.0  # monotonic; uses before then are one with the last that was told
        self.head = b""  # of the answer that is the whole page

    def hand_over(self) -> tuple[int, int] | None:
        """`fd` is about to be passed to a process on this host: where the page's record (`page_record.py`)
        and its data begin in it; None for a page in a file of its own."""
        return None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Pages of one version of one file."""

    file_id: bytes
    path: str  # "" where no header could hold it
    pages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """bytes <= capacity_bytes, always; pages = puts - evictions - drops since the store was made."""

    pages: int
    bytes: int  # on disk, headers included
    capacity_bytes: int
    evictions: dict[str, int]  # by reason: capacity, ttl, free, corrupt, lost
    rejections: dict[str, int]  # by reason: policy, full, disk_error
    corrupt: dict[str, int]  # by where: header, data, identity, truncated
    disk_errors: int
    loading: bool  # still scanning what an earlier process left


class PageStore(Protocol):
    """Thread-safe. Never raises for a disk's fault: a page that cannot be read is not there (and is
    counted), a page that cannot be written is not admitted (and is counted)."""

    page_bytes: int

    def peek(self, page: PageId) -> StoredPage | None:
        """The page if it is open already: no system call, for the event loop. Counts as a use."""
        ...

    def get(self, page: PageId) -> StoredPage | None:
        """Opens the page and checks its header against `page`; a wrong one is dropped and counted."""
        ...

    def contains(self, page: PageId) -> bool:
        """Whether a `get` would probably succeed; not a use."""
        ...

    def put(self, header: PageHeader, data: memoryview, *, group: str = "") -> bool:
        """Stores a page whole or not at all; True if it is there now. `group` is its mount, for policies."""
        ...

    def verify(self, page: PageId) -> bool:
        """Reads all of the page and compares checksums; drops it and returns False if they differ."""
        ...

    def drop(self, page: PageId, reason: str) -> bool:
        """Forgets the page and unlinks it; True if it was there."""
        ...

    def shelter(self, file_id: bytes) -> None:
        """One more reason not to evict pages of this file version; they are always admitted. Not kept
        across a restart. A page may still leave for any other reason than room."""
        ...

    def expose(self, file_id: bytes) -> None:
        """One reason less; after the last, its pages are like any others."""
        ...

    def prefer(self, file_id: bytes, priority: Priority) -> None:
        """Pages of this file version leave before others or after them. Forgotten at a restart, and a while
        after the last page of the file has left; so it is to be said before pages are put."""
        ...

    def has_room(self, size: int, *, group: str = "") -> bool:
        """Whether so many bytes more could come in, in free room or in place of pages that may be evicted."""
        ...

    def files(self) -> Iterator[StoredFile]:
        """Every file with at least one page; reads headers of pages from an earlier process as needed."""
        ...

    def free(self, path: str, *, recursive: bool, reason: str = "free") -> tuple[int, int]:
        """Drops every version of the file (or of all files below the directory): (pages, bytes)."""
        ...

    def expire(self, ttl_s: dict[str, float], now_ns: int) -> int:
        """Drops pages older than the TTL of the mount (first path segment) they belong to; their number."""
        ...

    def expire_files(self, ttl_of: Callable[[str], float | None], now_ns: int) -> int:
        """Drops pages older than what `ttl_of` says for their file's path; None is no limit. Their number."""
        ...

    def evict_to_low_watermark(self) -> int:
        """Called off the request path; number of pages evicted."""
        ...

    def stats(self) -> StoreStats: ...

    def close(self) -> None:
        """Idempotent; pages stay for the next process."""
        ...
