"""A page: a fixed-size piece of one version of one file, and the header that makes it trustworthy.

A page on disk is a 4096-byte header followed by the data, so that data is page-aligned for the
kernel. All integers little-endian. Version 1:

    0   8   magic "KARAPAGE"
    8   4   format = 1
    12  4   page_bytes      the page size of the store that wrote it
    16  16  file_id         of path, version and size: see `file_id`
    32  8   index           of the page in its file
    40  8   created_ns      wall clock, for TTL
    48  8   page_sum        checksum of all the data
    56  4   length          bytes of data, 1 .. page_bytes
    60  4   block_bytes     unit of the block sums
    64  2   blocks          number of block sums
    66  2   path_bytes      length of the path that follows the sums, 0 if it did not fit
    68  4   zero
    72  8n  block_sums      one checksum for each block, the last one of a short block
    ..  m   path            UTF-8, for listing and freeing by path; never trusted for identity
    4088 8  header_sum      checksum of bytes 0 .. 4087

Blocks are 4 KiB: a read of 3 KiB verifies one or two of them, in two thirds of the time that a block of
16 KiB takes (measured, pread and sum, 1.4 us against 2.7 for bytes that are not in the processor's
cache), and the sums of a 1 MiB page cost 60 us once, when it is filled. Readers take any size.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from kara_cache.checksum import Buffer, checksum
from kara_cache.errors import FormatError

HEADER_BYTES = 4096
DEFAULT_PAGE_BYTES = 1 << 20
MIN_PAGE_BYTES = 64 << 10
MAX_PAGE_BYTES = 64 << 20
_MAX_BLOCKS = 256
_MAGIC = b"KARAPAGE"
_FORMAT = 1
_FIXED = struct.Struct("<8sII16sQQQIIHHI")
_SUM = struct.Struct("<Q")


class PageId(NamedTuple):
    """Names the content, not the place: another version of the file has other pages."""

    file_id: bytes  # 16 bytes
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody looks a page up with

    def __str__(self) -> str:
        return f"{self.file_id.hex()}/{self.index}"


def file_id(path: str, version: str, size: int) -> bytes:
    """The 16-byte identity of one version of one file (BLAKE2b, so that nobody can forge a collision).

    `path` is the full path above the mount table; the parts are length-prefixed, so that no two
    triples share an encoding.
    """
    name, tag = path.encode("utf-8", "surrogatepass"), version.encode("utf-8", "surrogatepass")
    return blake2b(
        b"%d:%b%d:%b%d" % (len(name), name, len(tag), tag, size), digest_size=16, person=b"kara-file-v1"
    ).digest()


def block_bytes_for(page_bytes: int) -> int:
    """4 KiB, or larger so that a page has at most 256 blocks and its header stays 4 KiB."""
    return max(4 << 10, -(-page_bytes // _MAX_BLOCKS))


@dataclass(frozen=True, slots=True)
class PageHeader:
    """What is checked before a byte of the page is trusted."""

    page: PageId
    length: int
    page_bytes: int
    block_bytes: int
    page_sum: int
    block_sums: array[int]  # of type Q: an open page has 256 of them, which as integers would take 11 KiB
    created_ns: int
    path: str = ""

    @classmethod
    def of(
        cls,
        page: PageId,
        data: Buffer,
        *,
        page_bytes: int,
        created_ns: int,
        path: str = "",
        block_bytes: int = 0,
    ) -> PageHeader:
        """The header for data just received from the store; the only place where sums are taken.

        `block_bytes` is for pages as another version wrote them; 0: `block_bytes_for` the page size.
        """
        view = memoryview(data)
        if not 0 < len(view) <= page_bytes:
            raise ValueError(f"page {page}: {len(view)} bytes, allowed 1 .. {page_bytes}")
        step = block_bytes or block_bytes_for(page_bytes)
        return cls(
            page=page,
            length=len(view),
            page_bytes=page_bytes,
            block_bytes=step,
            page_sum=checksum(view),
            block_sums=array("Q", [checksum(view[at : at + step]) for at in range(0, len(view), step)]),
            created_ns=created_ns,
            path=path,
        )

    def encode(self) -> bytes:
        """Exactly HEADER_BYTES."""
        name = self.path.encode("utf-8", "surrogatepass")
        room = HEADER_BYTES - 8 - _FIXED.size - 8 * len(self.block_sums)
        if len(name) > room:
            name = b""
        head = _FIXED.pack(
            _MAGIC,
            _FORMAT,
            self.page_bytes,
            self.page.file_id,
            self.page.index,
            self.created_ns,
            self.page_sum,
            self.length,
            self.block_bytes,
            len(self.block_sums),
            len(name),
            0,
        )
        body = (head + _write_sums(self.block_sums) + name).ljust(HEADER_BYTES - 8, b"\0")
        return body + _SUM.pack(checksum(body))

    @classmethod
    def decode(cls, raw: Buffer) -> PageHeader:
        """Raises FormatError for anything that `encode` did not write, to the bit."""
        if len(raw) != HEADER_BYTES:
            raise FormatError(f"page header: {len(raw)} bytes, expected {HEADER_BYTES}")
        view = memoryview(raw)
        (want,) = _SUM.unpack_from(view, HEADER_BYTES - 8)
        if (got := checksum(view[: HEADER_BYTES - 8])) != want:
            raise FormatError(f"page header: checksum {got:#018x}, recorded {want:#018x}")
        (
            magic,
            version,
            page_bytes,
            identity,
            index,
            created_ns,
            page_sum,
            length,
            block_bytes,
            blocks,
            path_bytes,
            zero,
        ) = _FIXED.unpack_from(view)
        if magic != _MAGIC or version != _FORMAT:
            raise FormatError(f"page header: magic {magic!r} format {version}, expected {_MAGIC!r} {_FORMAT}")
        path_at = _FIXED.size + 8 * blocks
        if (
            not 0 < length <= page_bytes
            or not block_bytes
            or blocks != -(-length // block_bytes)
            or path_at + path_bytes > HEADER_BYTES - 8
            or zero
        ):
            raise FormatError(
                f"page header: length {length} of {page_bytes}, {blocks} blocks of {block_bytes}, "
                f"path {path_bytes}, reserved {zero}"
            )
        return cls(
            page=PageId(identity, index),
            length=length,
            page_bytes=page_bytes,
            block_bytes=block_bytes,
            page_sum=page_sum,
            block_sums=_read_sums(view[_FIXED.size : path_at]),
            created_ns=created_ns,
            path=_read_path(view[path_at : HEADER_BYTES - 8], path_bytes),
        )

    def cover(self, start: int, stop: int) -> tuple[int, int]:
        """The smallest run of whole blocks, as bytes [first, last), that holds [start, stop) of the page."""
        step = self.block_bytes
        return start - start % step, min(-(-stop // step) * step, self.length)

    def verify_blocks(self, data: Buffer, start: int) -> bool:
        """Whether `data`, whole blocks from byte `start` of the page as `cover` gave them, is as filled.

        No data at all, more than the page holds, or a start inside a block is never verified. Data
        cut short at a block's end is: compare its length with the cover before.
        """
        view, step = memoryview(data), self.block_bytes
        first = start // step
        if not view or start % step or start + len(view) > self.length:
            return False
        sums = [checksum(view[at : at + step]) for at in range(0, len(view), step)]
        return sums == self.block_sums[first : first + len(sums)].tolist()


def _write_sums(sums: array[int]) -> bytes:
    """As they lie in memory: packing 256 integers one by one takes as long as the rest of a header."""
    if sys.byteorder == "big":
        sums = array("Q", sums)
        sums.byteswap()
    return sums.tobytes()


def _read_sums(raw: memoryview) -> array[int]:
    sums = array("Q")
    sums.frombytes(raw)
    if sys.byteorder == "big":
        sums.byteswap()
    return sums


def _read_path(rest: memoryview, path_bytes: int) -> str:
    """The path at the start of `rest`, after which a header that `encode` wrote has only zeros."""
    if bytes(rest[path_bytes:]) != bytes(len(rest) - path_bytes):
        raise FormatError(f"page header: no zeros after a path of {path_bytes} bytes")
    try:
        return bytes(rest[:path_bytes]).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as exc:
        raise FormatError(f"page header: path is not UTF-8: {exc}") from exc
