"""One open file: reads in sequence are fetched in advance, all others are left alone."""

from __future__ import annotations

import enum
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import WorkerUnavailable
from kara_cache.page_buffers import PageBuffers, fresh_memory
from kara_cache.read_window import Window, after_read, goes_on, outdated, wanted
from kara_cache.reading.read_threads import ReadThreads

_COPY_BYTES = 64 << 10  # up to here a copy is cheaper than a buffer that cannot be used again

ReadInto = Callable[[CachedFile, int, memoryview], int]


class _State(enum.Enum):
    QUEUED = enum.auto()  # whoever comes first fetches it: a thread of the pool, or a reader that needs it
    RUNNING = enum.auto()
    READY = enum.auto()
    FAILED = enum.auto()
    GONE = enum.auto()  # its buffer was given back


class _Chunk:
    """Bytes [start, stop) of the file, at hand or on their way."""

    __slots__ = ("buffer", "dropped", "error", "lent", "start", "state", "stop", "used", "users", "view")

    def __init__(self, start: int, stop: int, buffer: memoryview) -> None:
        self.start = start
        self.stop = stop
        self.buffer = buffer
        self.view = buffer[: stop - start]
        self.state = _State.QUEUED
        self.error: Exception | None = None
        self.used = 0  # bytes from its start up to the furthest that was delivered
        self.users = 0  # reads that are about to copy from it
        self.lent = False  # a view of it is with a caller, so its memory must not be used again
        self.dropped = False  # no longer in the list; the last user gives the buffer back


class ReadAhead:
    """What all readers of a client share: threads, memory, counters."""

    def __init__(
        self,
        read_into: ReadInto,
        metrics: ClientMetrics,
        *,
        at_hand: Callable[[CachedFile, int, int], bool],
        window_bytes: int,
        timeout_s: float,
    ) -> None:
        """`window_bytes` for each reader in sequence; readers beyond the eighth find the memory in use.

        `at_hand` tells which bytes [start, stop) are on this host already: to fetch those in
        advance would only copy them twice.
        """
        self.read_into = read_into
        self.at_hand = at_hand
        self.metrics = metrics
        self.window_bytes = window_bytes
        self.timeout_s = timeout_s
        self.threads = ReadThreads()
        self.buffers = PageBuffers(8 * window_bytes)
        self.generation = 0  # another one in every forked child
        self.orphans: deque[_Chunk] = deque()  # of readers that nobody closed

    def open(self, file: CachedFile, position: int = -1) -> SequentialReader:
        """`position`: where the reader has read up to already, -1 for nowhere."""
        return SequentialReader(file, self, position)

    def release(self, chunk: _Chunk) -> None:
        """Takes the memory of a chunk that nobody uses any more. Once for each chunk."""
        if chunk.state is _State.GONE:
            return
        if chunk.state is _State.READY and chunk.used < chunk.stop - chunk.start:
            self.metrics.read_ahead("waste", chunk.stop - chunk.start - chunk.used)
        chunk.state = _State.GONE
        self.buffers.give_back(chunk.buffer, reusable=not chunk.lent)

    def release_orphans(self) -> None:
        while self.orphans:
            with suppress(IndexError):  # another thread was quicker
                self.release(self.orphans.popleft())

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self.generation += 1
        self.orphans.clear()
        self.threads.after_fork()
        self.buffers.after_fork()

    def close(self) -> None:
        self.threads.close()


class SequentialReader:
    """Reads of one version of one file. Thread-safe; a reader opened before a fork works in the child.

    Positions are the caller's: there is no cursor. No byte is fetched twice while it is held. What an
    advance fetch failed with is raised by the read that needs its bytes; the next one tries again.
    """

    def __init__(self, file: CachedFile, shared: ReadAhead, position: int = -1) -> None:
        self.file = file
        self._shared = shared
        self._closed = False
        self._reset()
        self._window = Window(position)

    def _reset(self) -> None:
        self._generation = self._shared.generation
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._chunks: list[_Chunk] = []  # by position, disjoint
        self._window = Window()

    def __repr__(self) -> str:
        return f"<SequentialReader {self.file.path} {len(self._chunks)} chunks, {self._window}>"

    def __del__(self) -> None:
        # A finalizer may run while this very thread holds any lock, so it takes none. No task is left:
        # one would hold a reference to us.
        if getattr(self, "_chunks", None) and self._generation == self._shared.generation:
            self._shared.orphans.extend(self._chunks)

    def readinto_at(self, start: int, buffer: bytearray | memoryview) -> int:
        """Fills `buffer` from byte `start`; fewer bytes only at the end of the file."""
        view = memoryview(buffer).cast("B")
        want = min(len(view), self.file.size - start)
        if want <= 0:
            return 0
        self._plan(start, start + want)
        self._copy(start, view[:want])
        return want

    def read_at(self, start: int, length: int) -> memoryview:
        """Bytes [start, start + length), fewer only at the end of the file; read-only.

        A view of more than 64 KiB may keep the memory of a whole chunk (8 MiB at most) alive.
        """
        want = max(0, min(length, self.file.size - start))
        if not want:
            return memoryview(b"")
        self._plan(start, start + want)
        if want > _COPY_BYTES:
            lent = self._lend(start, start + want)
            if lent is not None:
                return lent
        memory = fresh_memory(want)
        self._copy(start, memory)
        return memory.toreadonly()

    def close(self) -> None:
        """Cancels what is on its way. Idempotent; a read after it raises ValueError."""
        self._closed = True
        if self._generation != self._shared.generation:
            return  # what is here is the parent's
        with self._changed:
            chunks, self._chunks = self._chunks, []
            for chunk in chunks:
                self._drop(chunk)

    def _plan(self, start: int, stop: int) -> None:
        """Moves the window and starts what should be fetched in advance."""
        if self._closed:
            raise ValueError(f"read of closed reader of {self.file.path}")
        shared = self._shared
        if self._generation != shared.generation:
            self._reset()
        if goes_on(self._window, start, stop):
            self._window = Window(stop, self._window.ahead)
            return
        if shared.orphans:
            shared.release_orphans()
        queued: list[_Chunk] = []
        with self._changed:
            self._window = after_read(self._window, start, stop, shared.window_bytes)
            if not self._chunks and not self._window.ahead:
                return
            self._drop_outdated(start)
            held = [(chunk.start, chunk.stop) for chunk in self._chunks]
            for at, to in wanted(self._window, start, stop, self.file.size, held):
                if shared.at_hand(self.file, at, to):
                    continue
                buffer = shared.buffers.take(max(self._window.chunk_bytes, to - at))
                if buffer is None:
                    break
                chunk = _Chunk(at, to, buffer)
                self._chunks.insert(bisect_right(self._chunks, at, key=_start), chunk)
                if at >= stop:  # what this read itself needs, its own thread fetches
                    queued.append(chunk)
        for chunk in queued:
            shared.threads.submit(partial(self._fetch_queued, chunk))

    def _copy(self, start: int, view: memoryview) -> None:
        done, want = 0, len(view)
        while done < want:
            at = start + done
            chunk, gap_end = self._pin(at)
            if chunk is None:
                count = min(want - done, gap_end - at)
                self._shared.read_into(self.file, at, view[done : done + count])
            else:
                delivered = 0
                try:
                    self._await(chunk)
                    count = min(want - done, chunk.stop - at)
                    view[done : done + count] = chunk.view[at - chunk.start : at - chunk.start + count]
                    delivered = at + count
                finally:
                    self._unpin(chunk, delivered)
            done += count

    def _lend(self, start: int, stop: int) -> memoryview | None:
        """A view of the chunk that holds all of [start, stop); None if there is no such chunk."""
        chunk, _ = self._pin(start)
        if chunk is None:
            return None
        delivered = 0
        try:
            if stop > chunk.stop:
                return None
            self._await(chunk)
            chunk.lent, delivered = True, stop
            return chunk.view[start - chunk.start : stop - chunk.start].toreadonly()
        finally:
            self._unpin(chunk, delivered)

    def _pin(self, at: int) -> tuple[_Chunk | None, int]:
        """The chunk that holds byte `at`, kept until `_unpin`; or None and where the next one starts."""
        with self._changed:
            index = bisect_right(self._chunks, at, key=_start)
            if index and at < self._chunks[index - 1].stop:
                chunk = self._chunks[index - 1]
                chunk.users += 1
                return chunk, at
            return None, self._chunks[index].start if index < len(self._chunks) else self.file.size

    def _unpin(self, chunk: _Chunk, delivered_to: int) -> None:
        with self._changed:
            fresh = delivered_to - chunk.start - chunk.used
            if fresh > 0:
                chunk.used += fresh
                self._shared.metrics.read_ahead("hit", fresh)
            chunk.users -= 1
            self._release_if_unused(chunk)

    def _await(self, chunk: _Chunk) -> None:
        """Until the pinned chunk is ready, by fetching it if nobody does; raises what it failed with."""
        with self._changed:
            mine = chunk.state is _State.QUEUED
            if mine:
                chunk.state = _State.RUNNING
        if mine:
            self._fetch(chunk)
        limit_s = 2 * self._shared.timeout_s
        with self._changed:
            if not self._changed.wait_for(lambda: chunk.state in (_State.READY, _State.FAILED), limit_s):
                what = f"{self.file.path}: [{chunk.start}, {chunk.stop}) on its way for {limit_s:g} s"
                raise WorkerUnavailable(what, reason="timeout")
            if chunk.state is _State.FAILED:
                if not chunk.dropped:
                    self._chunks.remove(chunk)
                    self._drop(chunk)
                raise chunk.error or WorkerUnavailable(f"{self.file.path}: the fetch was interrupted")

    def _fetch_queued(self, chunk: _Chunk) -> None:
        """In a thread of the pool."""
        with self._changed:
            if chunk.state is not _State.QUEUED or chunk.dropped:
                return
            chunk.state = _State.RUNNING
        self._fetch(chunk)

    def _fetch(self, chunk: _Chunk) -> None:
        state = _State.FAILED
        try:
            self._shared.read_into(self.file, chunk.start, chunk.view)
            state = _State.READY
            self._shared.metrics.read_ahead("fetched", chunk.stop - chunk.start)
        except Exception as exc:  # noqa: BLE001 - kept for the read that needs the bytes
            chunk.error = exc
        finally:
            with self._changed:
                chunk.state = state
                self._changed.notify_all()
                self._release_if_unused(chunk)

    def _drop_outdated(self, at: int) -> None:
        kept = []
        for chunk in self._chunks:
            if outdated(self._window, at, chunk.start, chunk.stop):
                self._drop(chunk)
            else:
                kept.append(chunk)
        self._chunks = kept

    def _drop(self, chunk: _Chunk) -> None:
        """The chunk has left the list."""
        chunk.dropped = True
        self._release_if_unused(chunk)

    def _release_if_unused(self, chunk: _Chunk) -> None:
        if chunk.dropped and not chunk.users and chunk.state is not _State.RUNNING:
            self._shared.release(chunk)


def _start(chunk: _Chunk) -> int:
    return chunk.start
