"""64-bit words of a stream as one array: in place where the stream is one mapped file, else a copy."""

from __future__ import annotations

import sys
from typing import Literal

from kara_cache.errors import FormatError
from kara_cache.page_buffers import fresh_memory
from kara_cache.storage.rows.byte_stream import ByteStream
from kara_cache.storage.rows.mapped_bytes import MappedBytes

WORD = 8


def words(stream: ByteStream, start: int, count: int, kind: Literal["q", "Q"] = "Q") -> memoryview:
    """`count` words from byte `start`; `kind` "Q" is without a sign and "q" with one. Read-only.

    A copy takes 8 bytes a word, which forked children share. Raises FormatError where the stream ends before.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("row data sets are read on little-endian machines")
    length = count * WORD
    if start + length > stream.size:
        raise FormatError(f"{stream!r}: {length} bytes wanted at {start}")
    if isinstance(stream, MappedBytes) and len(stream.segments) == 1:
        return memoryview(stream.segments[0])[start : start + length].toreadonly().cast(kind)
    memory = fresh_memory(length)
    got = stream.read_into(start, memory) if length else 0
    if got != length:
        raise FormatError(f"{stream!r}: {got} of {length} bytes at {start}")
    return memory.toreadonly().cast(kind)
