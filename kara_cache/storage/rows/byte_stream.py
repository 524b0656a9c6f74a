"""The bytes of `0.blk`, `1.blk`, ... of one directory, as one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kara_cache.cache_client import CacheClient
from kara_cache.storage.location import Location


class ByteStream(Protocol):
    """A stream of a fixed size. Thread-safe, usable in a forked child."""

    @property
    def size(self) -> int:
        """Bytes, as they were when it was opened."""
        ...

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes [start, stop), fewer only at the end of the stream."""
        ...

    def read_spans(self, starts: Sequence[int], stops: Sequence[int]) -> Sequence[bytes | memoryview]:
        """The bytes of each [start, stop), in this order; one request to each worker where there are some."""
        ...

    def read_summed(
        self, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
    ) -> list[bytes | None] | None:
        """Those spans that are at hand and have these checksums, read without verifying what is around them.

        None for each of the others, for a `read_spans`; None in all where that would gain nothing.
        """
        ...

    def read_into(self, start: int, buffer: memoryview | bytearray) -> int:
        """Fills `buffer` from byte `start` and returns how many bytes were there."""
        ...

    def close(self) -> None:
        """Idempotent. Reads after it raise ValueError."""
        ...


def open_byte_stream(location: Location, path: str) -> ByteStream:
    """The stream in directory `path` of the location's store; an empty one where nothing is there."""
    if location.local is not None:
        from kara_cache.storage.rows.mapped_bytes import MappedBytes

        return MappedBytes(f"/{path}")
    from kara_cache.storage.rows.stored_bytes import StoredBytes

    if location.cached is not None:
        return StoredBytes(CachedPlace(location), location.cached.kara_path(path))
    return StoredBytes(location, path)


class CachedPlace:
    """A location behind the cache, for who speaks to the client itself: paths are kara paths."""

    def __init__(self, location: Location) -> None:
        self._location = location

    @property
    def store(self) -> CacheClient:
        cached = self._location.cached
        assert cached is not None
        return cached.client
