"""The checksums of rows: a stream of our own beside index and data, which other readers do not look at.

     0     8     12    16                    16 + 8 i
    +-----------+-----+-----+---- ... ------+------------------+
    | KARASUMS  | ver | len | sum of row 0  |  sum of row i    |
    +-----------+-----+-----+---- ... ------+------------------+
      8 bytes    u32   u32    u64             u64                little-endian

    ver   1
    len   8, the bytes of one sum
    sum   xxh3_64 of the row's bytes; 0: not known, of a row that another program wrote

Like the other streams it is cut into `sums/0.blk`, `sums/1.blk`, ... at any place. It may be shorter than
the index: rows of the published package, appended after ours, have no sum. A sum is written after its row
and the row's index entry are durable, so a sum that is there tells that its row was flushed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

from kara_cache.checksum import Buffer
from kara_cache.errors import FormatError
from kara_cache.storage.rows.byte_stream import ByteStream
from kara_cache.storage.rows.words import WORD, Words, words

HEADER = struct.Struct("<8sII")
MAGIC = b"KARASUMS"
VERSION = 1
UNKNOWN = 0

row_sum = xxh3_64_intdigest  # called for every row: not through a function of ours


def header() -> bytes:
    return HEADER.pack(MAGIC, VERSION, WORD)


def sums_of(rows: Iterable[Buffer]) -> Iterable[int]:
    return map(row_sum, rows)


def padding(rows: int) -> bytes:
    """Sums of `rows` rows that are not known."""
    return bytes(WORD * rows)


def read_sums(stream: ByteStream, where: object) -> Words:
    """All complete sums, as unsigned words. Raises FormatError for a header that is not ours."""
    if stream.size < HEADER.size:  # none, or a writer that ended within the first flush
        return memoryview(b"").cast("Q")
    magic, version, length = HEADER.unpack(bytes(stream.read(0, HEADER.size)))
    if (magic, version, length) != (MAGIC, VERSION, WORD):
        raise FormatError(
            f"{where}: checksums begin with {magic!r}, version {version}, length {length}; known is "
            f"{MAGIC!r}, {VERSION}, {WORD}. With verify=False rows are read without them"
        )
    return words(stream, HEADER.size, (stream.size - HEADER.size) // WORD)


def flushed_rows(sums: Words) -> int:
    """How many rows are known to have been flushed: up to the last one that has a sum."""
    for i in range(len(sums) - 1, -1, -1):
        if sums[i] != UNKNOWN:
            return i + 1
    return 0
