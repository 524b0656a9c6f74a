"""64-bit words of a stream: in place where it is one mapped file, else a copy of it, or pages of it."""

from __future__ import annotations

import sys
from typing import Literal

from kara_cache.errors import FormatError
from kara_cache.page_buffers import fresh_memory
from kara_cache.storage.rows.byte_stream import ByteStream
from kara_cache.storage.rows.mapped_bytes import MappedBytes
from kara_cache.storage.rows.paged_words import WORD, PagedWords

HELD_BYTES = 64 << 20  # of a copy: eight million rows; by feel
Words = memoryview | PagedWords


def words(stream: ByteStream, start: int, count: int, kind: Literal["q", "Q"] = "Q") -> Words:
    """`count` words from byte `start`; `kind` "Q" is without a sign and "q" with one. Read-only.

    A copy takes 8 bytes a word, which forked children share; what is longer than `HELD_BYTES` stays where it
    is, and needs the stream. Raises FormatError where the stream ends before.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("row data sets are read on little-endian machines")
    length = count * WORD
    if start + length > stream.size:
        raise FormatError(f"{stream!r}: {length} bytes wanted at {start}")
    if isinstance(stream, MappedBytes) and len(stream.segments) == 1:
        return memoryview(stream.segments[0])[start : start + length].toreadonly().cast(kind)
    if length > HELD_BYTES and not isinstance(stream, MappedBytes):
        return PagedWords(stream, start, count, kind)
    memory = fresh_memory(length)
    got = stream.read_into(start, memory) if length else 0
    if got != length:
        raise FormatError(f"{stream!r}: {got} of {length} bytes at {start}")
    return memory.toreadonly().cast(kind)


def close_unless_paged(stream: ByteStream, found: Words) -> None:
    """What was copied, or mapped, needs its stream no longer."""
    if not isinstance(found, PagedWords):
        stream.close()


def close_words(found: Words) -> None:
    if isinstance(found, PagedWords):
        found.close()


__all__ = ["HELD_BYTES", "WORD", "PagedWords", "Words", "close_unless_paged", "close_words", "words"]
