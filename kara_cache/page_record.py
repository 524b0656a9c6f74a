"""A page in a segment file: its header without padding, then its data. Pure arithmetic and bytes.

    0   n   what `PageHeader.encode` begins with: 72 bytes, the block sums, the path
    n   8   its last 8 bytes: the sum of the padded header
    ..      zeros up to the data

A page of 64 KiB or more begins at a multiple of 4096 and its data 4096 bytes later, so that the kernel
copies whole memory pages (2.2 times as fast, measured). Smaller pages are packed to 64 bytes: one of
20 KiB takes 1 % more than its data, where a header of 4 KiB would take 20 %.
"""

from __future__ import annotations

import struct

from kara_cache.checksum import Buffer
from kara_cache.errors import FormatError
from kara_cache.page import HEADER_BYTES, PageHeader

UNIT_BYTES = 64  # every record begins at a multiple of it
LARGE_BYTES = 64 << 10  # of data; from here on a record is aligned to LARGE_UNIT_BYTES
LARGE_UNIT_BYTES = 4096
_FIXED_BYTES = 72
_COUNTS = struct.Struct("<HH")  # number of block sums, bytes of the path
_COUNTS_AT = 64
_SUM_BYTES = 8


def pack(header: PageHeader) -> bytes:
    """The header as it lies in a segment, followed by the zeros before its data."""
    whole = header.encode()
    used = _used(whole)
    return (whole[:used] + whole[-_SUM_BYTES:]).ljust(data_at(used + _SUM_BYTES, header.length), b"\0")


def unpack(raw: Buffer) -> PageHeader:
    """The header that `raw` begins with; what follows is ignored. Raises FormatError."""
    view = memoryview(raw)
    if len(view) < _FIXED_BYTES:
        raise FormatError(f"page record: {len(view)} bytes, a header has at least {_FIXED_BYTES}")
    used = _used(view)
    if used + _SUM_BYTES > min(len(view), HEADER_BYTES):
        raise FormatError(f"page record: a header of {used + _SUM_BYTES} bytes, {len(view)} are there")
    body = bytes(view[:used]).ljust(HEADER_BYTES - _SUM_BYTES, b"\0")
    return PageHeader.decode(body + view[used : used + _SUM_BYTES])


def packed_bytes(header: PageHeader) -> int:
    """Of the header that `pack` would make, without zeros."""
    sums = _FIXED_BYTES + 8 * len(header.block_sums)
    path = len(header.path.encode("utf-8", "surrogatepass"))
    return sums + (path if sums + path + _SUM_BYTES <= HEADER_BYTES else 0) + _SUM_BYTES


def data_at(packed: int, length: int) -> int:
    """Where the data begins in a record whose header has `packed` bytes."""
    return HEADER_BYTES if length >= LARGE_BYTES else -(-packed // UNIT_BYTES) * UNIT_BYTES


def record_bytes(packed: int, length: int) -> int:
    """What the page takes of its segment."""
    unit = unit_of(length)
    return -(-(data_at(packed, length) + length) // unit) * unit


def unit_of(length: int) -> int:
    """A record of so much data begins at a multiple of it."""
    return LARGE_UNIT_BYTES if length >= LARGE_BYTES else UNIT_BYTES


def _used(raw: Buffer) -> int:
    blocks, path_bytes = _COUNTS.unpack_from(raw, _COUNTS_AT)
    return int(_FIXED_BYTES + 8 * blocks + path_bytes)
