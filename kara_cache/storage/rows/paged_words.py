"""64-bit words of a stream in a store that are too many to keep: blocks of them, and batches by number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from kara_cache.storage.rows.byte_stream import ByteStream

WORD = 8
_BLOCK = 1024  # words: 8 KiB for who wants a row, no request for the thousand after it
_BLOCKS = 2048  # kept, 16 MiB; those used last


class PagedWords:
    """What `words` gives of a short stream, at a request for each block, slice and batch. Read-only.

    Thread-safe, usable in a forked child. Closes its stream. Raises what the stream raises.
    """

    def __init__(self, stream: ByteStream, start: int, count: int, kind: Literal["q", "Q"]) -> None:
        """`count` words from byte `start`, which must be there."""
        self._stream = stream
        self._start = start
        self._count = count
        self._kind = kind
        self._block = lru_cache(_BLOCKS)(self._read_block)

    def __repr__(self) -> str:
        return f"<PagedWords {self._count} of {self._stream!r}>"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """A word, or a slice of them, without steps, as a view."""
        if isinstance(index, slice):
            first, stop, step = index.indices(self._count)
            if step != 1:
                raise ValueError(f"a slice of a stream has no steps, got {step}")
            return self._read(first, max(first, stop))
        number = index + self._count if index < 0 else index
        if not 0 <= number < self._count:
            raise IndexError(f"word {index} of {self._count}")
        return self._block(number // _BLOCK)[number % _BLOCK]

    def take(self, numbers: Sequence[int], count: int = 1) -> list[list[int]]:
        """`count` words from each number on, in one go; they must be there.

        Returns a list of the first word of each, one of the second, ...
        """
        starts = [self._start + number * WORD for number in numbers]
        found = self._stream.read_spans(starts, [start + count * WORD for start in starts])
        words = memoryview(b"".join(found)).cast(self._kind).tolist()
        return [words[at::count] for at in range(count)]

    def close(self) -> None:
        self._stream.close()
        self._block.cache_clear()

    def _read_block(self, block: int) -> memoryview:
        return self._read(block * _BLOCK, min((block + 1) * _BLOCK, self._count))

    def _read(self, first: int, stop: int) -> memoryview:
        begin, end = self._start + first * WORD, self._start + stop * WORD
        (found,) = self._stream.read_spans([begin], [end])
        return memoryview(found).toreadonly().cast(self._kind)
