"""Page-aligned memory for bytes on their way in."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import sys
import threading
from collections.abc import Callable

_MALLOC_BYTES = 32 << 20  # glibc keeps freed memory up to this size for the next call (M_MMAP_THRESHOLD)
_HUGE_BYTES = 2 << 20
_FAULTS_BYTES = 64 << 10  # from here on page faults may take longer than the copy
_COLLECTOR_CRASHES = sys.version_info[:2] == (3, 12)  # on a view of a BytesIO in a cycle: CPython gh-111049


def fresh_memory(count: int) -> memoryview:
    """Writable memory for one result, zeroed; it lives as long as its views.

    From malloc as long as that gives what was freed before: page faults of new mappings take longer
    than to receive the bytes (measured: 0.3 ms for 10 MiB against 6 to 20).
    """
    if count >= _MALLOC_BYTES:
        return aligned_memory(count)
    if count >= _FAULTS_BYTES:
        _keep_what_is_freed()
    return memoryview(bytearray(count))


def filled_bytes(count: int, fill: Callable[[memoryview], object]) -> bytes:
    """`count` bytes as `fill` writes them into the view that it gets, without the copy that `bytes(view)` is.

    CPython's BytesIO returns the very object that it handed out a view of, if no view is left: half of the
    memory and, from 1 MiB on, half of the time (measured). Elsewhere it copies, and so does CPython 3.12,
    where an error whose traceback has such a view ends the process when it is collected.
    """
    if count >= _FAULTS_BYTES:
        _keep_what_is_freed()
    if _COLLECTOR_CRASHES:
        memory = bytearray(count)
        fill(memoryview(memory))
        return bytes(memory)
    result = _Result(bytes(count))
    fill(result.getbuffer())
    return result.getvalue()


class _Result(io.BytesIO):
    """An error of `fill` has views in its traceback, and both may be collected together with us."""

    def close(self) -> None:
        """Called by the collector, which would print what it cannot raise."""
        with contextlib.suppress(BufferError):
            super().close()


@functools.cache
def _keep_what_is_freed() -> None:
    """Once in a process. glibc gives free memory at the end of its heap back to the kernel, at first all
    beyond 128 KiB: then a result of 1 MiB and its copy as `bytes` are mapped anew each time, 1 000 us of
    page faults beside 80 of work (measured). Freeing one large block raises that limit to 64 MiB
    (M_TRIM_THRESHOLD, mallopt(3)), as it does in any process that has freed one. Nothing is written to it.
    """
    bytes(_MALLOC_BYTES - 2 * mmap.PAGESIZE)


def aligned_memory(count: int) -> memoryview:
    """Page-aligned memory, for buffers that are used again and again; it lives as long as its views.

    The kernel copies 2.2 times slower to an address 16 bytes beside a page, where bytearrays lie.
    Private, which is not Python's default: a shared mapping stays shared with children after fork, and
    gets no huge pages (measured, first use of 4 MiB: 0.5 ms against 3).
    """
    area = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if count >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)  # half as fast again at 4 MiB (measured)
    return memoryview(area)


class PageBuffers:
    """Buffers for reuse within a budget. Thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        """At most `budget_bytes` are out or kept for reuse at any time."""
        self._budget_bytes = budget_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._free: dict[int, list[memoryview]] = {}  # by size
        self._held_bytes = 0  # out, and free

    def __repr__(self) -> str:
        return f"<PageBuffers {self._held_bytes} of {self._budget_bytes} bytes>"

    def take(self, size: int) -> memoryview | None:
        """A buffer of this size, its content undefined; None when the budget is used up."""
        with self._lock:
            if free := self._free.get(size):
                return free.pop()
            if self._held_bytes + size > self._budget_bytes:
                self._drop_free()
            if self._held_bytes + size > self._budget_bytes:
                return None
            self._held_bytes += size
        return aligned_memory(size)

    def give_back(self, buffer: memoryview, *, reusable: bool) -> None:
        """Ends a `take`. `reusable`: no view of it is left anywhere."""
        with self._lock:
            if reusable:
                self._free.setdefault(len(buffer), []).append(buffer)
            else:
                self._held_bytes -= len(buffer)

    def _drop_free(self) -> None:
        """Free buffers of other sizes make room."""
        self._held_bytes -= sum(size * len(free) for size, free in self._free.items())
        self._free.clear()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock. What is out stays with those who have it."""
        self._reset()
