"""A stream of rows that lies in a store: segments found once, then read at the version they had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kara_cache.cache_client import CacheClient
from kara_cache.reading.read_ahead import SequentialReader
from kara_cache.same_host.summed_spans import JoinedFiles
from kara_cache.storage.rows.segment_reads import CachedReads, DirectReads, SegmentReads
from kara_cache.storage.rows.segments import ends_of, find_segments
from kara_cache.storage.rows.spans import cut, cut_all, runs_of
from kara_cache.ufs.base import FileInfo, UnderStore
from kara_cache.ufs.per_process import PerProcess

_RUN_BYTES = 8 << 20  # of neighbouring spans fetched as one: what a worker asks its store for at once
_READERS = 4  # segments read in sequence at a time; each holds memory for what it fetches in advance


class Place(Protocol):
    """Where the segments are: pickles, and gives each process a store of its own."""

    @property
    def store(self) -> UnderStore | CacheClient: ...


class StoredBytes:
    """A `ByteStream` over `N.blk` of one directory of a store, or of the cache in front of it.

    The segments are those that were there when it was made: their sizes and versions are found once
    and travel with a pickle, so that every process of a job reads the same bytes. A segment that is
    replaced afterwards is StaleVersion, or FileNotFoundError when it is gone; stores that have no
    versions (a web server without ETag and Last-Modified) can only tell by the size. Reads raise what
    `CacheClient` and `UnderStore` raise.

    Thread-safe, usable in a forked child. Makes no request beyond those of `find_segments` until it is
    read; read in sequence, it fetches in advance.
    """

    def __init__(self, place: Place, directory: str, *, segments: Sequence[FileInfo] | None = None) -> None:
        """`segments` that are known already spare the requests. Without any, the stream is empty."""
        self._place = place
        self._directory = directory
        store = place.store
        self.segments = tuple(find_segments(store, directory) if segments is None else segments)
        self._ends = ends_of(self.segments)
        self.size = self._ends[-1] if self._ends else 0
        self._joined = JoinedFiles(self.segments)
        self._reads: SegmentReads = (
            CachedReads(store) if isinstance(store, CacheClient) else DirectReads(store)
        )
        self._readers: PerProcess[dict[int, SequentialReader]] = PerProcess(dict, _close_all)
        self._closed = False

    def __repr__(self) -> str:
        return f"<StoredBytes {self._directory}: {self.size} bytes in {len(self.segments)} segments>"

    def __reduce__(self) -> tuple[Callable[..., StoredBytes], tuple[Any, ...]]:
        return _rebuild, (self._place, self._directory, self.segments)

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes [start, stop), fewer only at the end of the stream; read-only."""
        self._check(start, stop)
        parts = [
            self._reader(segment).read_at(at, count)
            for segment, at, count in cut(start, min(stop, self.size), self._ends)
        ]
        if len(parts) == 1:
            return parts[0]
        return b"".join(parts)

    def read_into(self, start: int, buffer: memoryview | bytearray) -> int:
        """Fills `buffer` from byte `start` and returns how many bytes were there."""
        view = memoryview(buffer).cast("B")
        self._check(start, start + len(view))
        done = 0
        for segment, at, count in cut(start, min(start + len(view), self.size), self._ends):
            self._reader(segment).readinto_at(at, view[done : done + count])
            done += count
        return done

    def read_spans(self, starts: Sequence[int], stops: Sequence[int]) -> list[memoryview]:
        """The bytes of each [start, stop) in this order, in one go; read-only.

        The views share one piece of memory, so one of them keeps all alive. A span beyond the end of
        the stream is a ValueError.
        """
        if self._closed:
            self._check(0, 0)
        runs, places, lengths = runs_of(_ints(starts), _ints(stops), self._reads.gap_bytes, _RUN_BYTES)
        if not runs:
            return [memoryview(b"")] * len(lengths)
        first, last = runs[0][0], runs[-1][1]
        if first < 0 or last > self.size:
            raise ValueError(
                f"{self._directory}: spans from {first} to {last}, but the stream has {self.size} bytes"
            )
        segments = self.segments
        ranges = [(segments[segment], at, count) for segment, at, count in cut_all(runs, self._ends)]
        memory = self._reads.gather(ranges).toreadonly()
        return [memory[at : at + length] for at, length in zip(places, lengths, strict=True)]

    def read_summed(
        self, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
    ) -> list[bytes | None] | None:
        """Those that pages of this host hold: see `ByteStream`."""
        if self._closed:
            self._check(0, 0)
        return self._reads.read_summed(self._joined, starts, stops, sums)

    def close(self) -> None:
        """Idempotent; a read after it raises ValueError. The place stays open."""
        self._closed = True
        self._readers.close()
        self._reads.close()

    def _check(self, start: int, stop: int) -> None:
        if self._closed:
            raise ValueError(f"{self._directory}: read of a closed stream")
        if start < 0 or stop < start:
            raise ValueError(f"{self._directory}: bytes [{start}, {stop}) are no part of a stream")

    def _reader(self, segment: int) -> SequentialReader:
        readers = self._readers.get()
        reader = readers.get(segment)
        if reader is None:
            for oldest in list(readers)[: 1 - _READERS]:
                readers.pop(
                    oldest, None
                )  # not closed: another thread may be reading; the last one lets it go
            reader = readers.setdefault(segment, self._reads.reader(self.segments[segment]))
        return reader


def _ints(values: Sequence[int]) -> Sequence[int]:
    """As Python's own integers: with those of numpy, arithmetic takes five times as long."""
    tolist = getattr(values, "tolist", None)
    return values if tolist is None else tolist()


def _close_all(readers: dict[int, SequentialReader]) -> None:
    for reader in readers.values():
        reader.close()


def _rebuild(place: Place, directory: str, segments: Sequence[FileInfo]) -> StoredBytes:
    return StoredBytes(place, directory, segments=segments)
