"""A page in a file of its own: its name, how it is written whole, how it is opened and believed.

The file is the 4096-byte header of `kara_cache/page.py`, then the data. Its name says everything a
restart has to know, so that reading directories is enough, without a stat and without a read:

    pages/ab/<file_id, 32 hex>.<index>.<length>.<group, 8 hex>.<created>

Numbers are in hex without leading zeros; ab = (first byte of file_id + index) mod 256; `group` stands
for the mount; `created` counts steps of 2**36 ns (69 s) since 1970. A file is written under
`tmp.<run>.<n>` beside its place and renamed, and never written again, so that a descriptor that is
open for it stays good after the file was unlinked. There is no fsync: after a power failure a page may
be torn, which its length or its checksums tell.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from kara_cache.checksum import checksum
from kara_cache.errors import FormatError
from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_worker.pages.page_store import StoredPage

SHARDS = 256
TEMPORARY = "tmp."
CREATED_STEP_NS = 1 << 36
_BLOCK_BYTES = 4096  # of ext4 and xfs
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO in the place must not block us
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class PageEntry(NamedTuple):
    """What is known of a page without opening it. Equal ones are shared: most pages differ in nothing."""

    directory: int  # number in the store's list
    length: int
    group: str  # `group_token` of the mount
    created: int  # in steps of CREATED_STEP_NS
    size: int  # `footprint` of the length

    @classmethod
    def of(cls, directory: int, length: int, group: str, created_ns: int) -> PageEntry:
        return cls(directory, length, group, created_ns // CREATED_STEP_NS, footprint(length))


FoundPage = tuple[bytes, int, PageEntry]
"""File id, index and the rest, as read from a name."""


class PageDamaged(Exception):
    """A file is not the page that its name says. `where`: header, data, identity or truncated."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


class OpenPage(StoredPage):
    """Owns its descriptor."""

    __slots__ = ()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)


def footprint(length: int) -> int:
    """Bytes that a page takes on disk: header and data in whole file system blocks of 4 KiB."""
    return HEADER_BYTES + -(-length // _BLOCK_BYTES) * _BLOCK_BYTES


@lru_cache(maxsize=1024)
def group_token(group: str) -> str:
    """Stands for a mount in file names; two mounts with one token would merely be evicted as one."""
    return blake2b(group.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def shard_of(page: PageId) -> int:
    """Neighbouring pages of a large file lie in different directories, each of which stays small."""
    return (page.file_id[0] + page.index) % SHARDS


def page_name(page: PageId, entry: PageEntry) -> str:
    return f"{page.file_id.hex()}.{page.index:x}.{entry.length:x}.{entry.group}.{entry.created:x}"


class PageNames:
    """Reads names back. What follows the index is the same for most pages of a directory, and read once."""

    def __init__(self, directory: int, page_bytes: int) -> None:
        self._directory = directory
        self._page_bytes = page_bytes
        self._entries: dict[str, PageEntry] = {}

    def parse(self, name: str) -> FoundPage | None:
        """None for a name that this store did not write."""
        try:
            identity, index, rest = name.split(".", 2)
            file_id, number = bytes.fromhex(identity), int(index, 16)
            entry = self._entries.get(rest) or self._parse_rest(rest)
        except ValueError:
            return None
        return (file_id, number, entry) if len(file_id) == 16 else None

    def _parse_rest(self, rest: str) -> PageEntry:
        length, group, created = rest.split(".")
        count = int(length, 16)
        if not 0 < count <= self._page_bytes or len(group) != 8:
            raise ValueError(f"not a page of this store: {rest}")
        entry = PageEntry(self._directory, count, group, int(created, 16), footprint(count))
        return self._entries.setdefault(rest, entry)


def write_whole(path: str, header: bytes, data: memoryview) -> None:
    """A new file with both parts, or none and OSError."""
    fd = os.open(path, _CREATE, 0o600)
    try:
        try:
            _write_all(fd, header, data)
        finally:
            os.close(fd)  # some file systems tell only now that they were full
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _write_all(fd: int, header: bytes, data: memoryview) -> None:
    rest = [memoryview(header), data]
    while rest:
        count = os.writev(fd, rest)
        if not count:
            raise OSError(errno.EIO, "nothing was written")
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]


def open_page(path: str, page: PageId, entry: PageEntry, page_bytes: int) -> OpenPage:
    """The page, its header checked against its name and its length. Raises PageDamaged or OSError."""
    try:
        fd = os.open(path, _OPEN)
    except OSError as exc:
        if os.path.islink(path):
            raise PageDamaged("identity", f"{path}: a symbolic link") from exc
        raise
    try:
        header = _read_header(fd, path)
        if (header.page, header.length, header.page_bytes) != (page, entry.length, page_bytes):
            raise PageDamaged(
                "identity",
                f"{path}: holds page {header.page}, {header.length} bytes of at most {header.page_bytes}",
            )
        if (size := os.fstat(fd).st_size) != HEADER_BYTES + header.length:
            raise PageDamaged("truncated", f"{path}: {size} bytes, expected {HEADER_BYTES + header.length}")
    except BaseException:
        os.close(fd)
        raise
    return OpenPage(fd, HEADER_BYTES, header)


def _read_header(fd: int, path: str) -> PageHeader:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise PageDamaged("identity", f"{path}: not a regular file")
    raw = os.pread(fd, HEADER_BYTES, 0)
    if len(raw) != HEADER_BYTES:
        raise PageDamaged("truncated", f"{path}: {len(raw)} bytes, a header has {HEADER_BYTES}")
    try:
        return PageHeader.decode(raw)
    except FormatError as exc:
        raise PageDamaged("header", f"{path}: {exc}") from exc


def check_data(stored: StoredPage) -> None:
    """Reads all of the page. Raises PageDamaged if it is not what was filled, or OSError."""
    header = stored.header
    view = memoryview(bytearray(header.length))
    done = 0
    while done < header.length:
        count = os.preadv(stored.fd, [view[done:]], stored.offset + done)
        if not count:
            raise PageDamaged("truncated", f"page {header.page}: {done} bytes, expected {header.length}")
        done += count
    if (got := checksum(view)) != header.page_sum:
        raise PageDamaged(
            "data", f"page {header.page}: checksum {got:#018x}, recorded {header.page_sum:#018x}"
        )
