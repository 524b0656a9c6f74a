"""Bytes of segments, from the cache or straight from their store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from kara_cache.cache_client import CacheClient
from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import UnderStoreError
from kara_cache.page_buffers import fresh_memory
from kara_cache.reading.read_ahead import ReadAhead, SequentialReader
from kara_cache.same_host.summed_spans import JoinedFiles
from kara_cache.ufs.base import FileInfo, UnderStore
from kara_cache.ufs.per_process import PerProcess

_PARALLEL = 16  # requests to a store at a time; more only raise the chance to be throttled
_WINDOW_BYTES = 32 << 20  # of read-ahead on one segment
_TIMEOUT_S = 60.0  # of one fetch in advance; the store has timeouts of its own

Range = tuple[FileInfo, int, int]  # file, first byte, count


class SegmentReads(Protocol):
    """Thread-safe, and usable in a forked child."""

    gap_bytes: int
    """Up to this distance it is cheaper to read what lies between two ranges than to ask twice."""

    def gather(self, ranges: Sequence[Range]) -> memoryview:
        """The bytes of all ranges end to end, each at the version of its FileInfo, in new memory."""
        ...

    def read_summed(
        self, stream: JoinedFiles, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
    ) -> list[bytes | None] | None:
        """As `ByteStream.read_summed`."""
        ...

    def reader(self, segment: FileInfo) -> SequentialReader:
        """For reads in sequence."""
        ...

    def close(self) -> None: ...


class CachedReads:
    """Through the cache: one request for each worker, however many ranges."""

    # A range costs 14 us on both sides together over TCP and 5 us on one host, what lies between ranges
    # 1.2 us and 0.1 us for each KiB (measured): break-even is at 12 and 40 KiB.
    gap_bytes = 8 << 10

    def __init__(self, client: CacheClient) -> None:
        """The client stays its owner's to close."""
        self._client = client

    def gather(self, ranges: Sequence[Range]) -> memoryview:
        views = self._client.read_ranges(ranges)
        if len(views) == 1:
            return views[0]
        total = sum(map(len, views))
        return memoryview(views[0].obj)[:total]  # they lie end to end in one piece of memory

    def read_summed(
        self, stream: JoinedFiles, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
    ) -> list[bytes | None] | None:
        return self._client.read_summed(stream, starts, stops, sums)

    def reader(self, segment: FileInfo) -> SequentialReader:
        return self._client.open_reader(segment)

    def close(self) -> None:
        """Nothing of its own."""


class DirectReads:
    """Without a cache: a request for each range, several at a time."""

    # 20 ms to the first byte at 100 MB/s are 2 MB; an eighth, because up to 16 requests wait at a time.
    gap_bytes = 256 << 10

    def __init__(self, store: UnderStore) -> None:
        """The store stays its owner's to close."""
        self._store = store
        self._threads = PerProcess(
            lambda: ThreadPoolExecutor(_PARALLEL, thread_name_prefix="kara-rows"), ThreadPoolExecutor.shutdown
        )
        self._ahead = PerProcess(self._read_ahead, ReadAhead.close)

    def gather(self, ranges: Sequence[Range]) -> memoryview:
        memory = fresh_memory(sum(count for _, _, count in ranges))
        at, jobs = 0, []
        for segment, start, count in ranges:
            jobs.append((segment, start, memory[at : at + count]))
            at += count
        if len(jobs) == 1:
            self._fill(*jobs[0])
            return memory
        submit = self._threads.get().submit
        pending: list[Future[None]] = [submit(self._fill, *job) for job in jobs]
        try:
            for future in pending:
                future.result()
        finally:
            for future in pending:
                future.cancel()
        return memory

    def read_summed(
        self, stream: JoinedFiles, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
    ) -> None:
        """Nothing is at hand."""

    def reader(self, segment: FileInfo) -> SequentialReader:
        return self._ahead.get().open(CachedFile(segment))

    def close(self) -> None:
        self._threads.close()
        self._ahead.close()

    def _read_ahead(self) -> ReadAhead:
        return ReadAhead(
            self._read_into,
            ClientMetrics(),
            at_hand=lambda *_: False,
            window_bytes=_WINDOW_BYTES,
            timeout_s=_TIMEOUT_S,
        )

    def _read_into(self, file: CachedFile, start: int, view: memoryview) -> int:
        self._fill(file.info, start, view)
        return len(view)

    def _fill(self, segment: FileInfo, start: int, view: memoryview) -> None:
        got = self._store.read_into(segment.path, start, view, version=segment.version or None)
        if got != len(view):
            raise UnderStoreError(
                f"{self._store.url}/{segment.path}: {got} bytes at {start}, expected {len(view)}: "
                f"the segment had {segment.size} bytes when the dataset was opened"
            )
