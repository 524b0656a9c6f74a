"""Memory for bytes on their way from a store, used again when nobody looks at them any more."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import defaultdict

from kara_cache.page_buffers import aligned_memory

_FROM_HEAP_BYTES = 128 << 10  # up to here malloc has it at hand
_STEP_BYTES = 256 << 10  # areas are multiples of it


class FillMemory:
    """Thread-safe.

    New memory costs as much as to receive into it, in page faults and zeros, and a `bytearray` pays for
    both while it holds the interpreter: a quarter of a fill's processor time (measured, 1 MiB).
    """

    def __init__(self, keep_bytes: int) -> None:
        """`keep_bytes`: at most so much is kept for the next fills."""
        self._lock = threading.RLock()  # guards both; views may be dropped, by the collector, inside of it
        self._room = keep_bytes
        self._free: defaultdict[int, list[memoryview]] = defaultdict(list)

    def __repr__(self) -> str:
        held = sum(size * len(areas) for size, areas in self._free.items())
        return f"<FillMemory {held} bytes free>"

    def take(self, size: int) -> memoryview:
        """Writable, its content undefined. It may be given to others once the last view of it is gone."""
        if size <= _FROM_HEAP_BYTES:
            return memoryview(bytearray(size))
        room = -(-size // _STEP_BYTES) * _STEP_BYTES
        with self._lock:
            area = self._free[room].pop() if self._free[room] else None
            self._room += room if area is not None else 0
        if area is None:
            area = aligned_memory(room)
        # a view cannot tell when the last one made from it goes; what it was made of can
        lent = (ctypes.c_char * room).from_buffer(area)
        weakref.finalize(lent, self._give_back, area).atexit = False
        return memoryview(lent).cast("B")[:size]

    def _give_back(self, area: memoryview) -> None:
        """In whatever thread dropped the last view."""
        with self._lock:
            if self._room >= len(area):
                self._room -= len(area)
                self._free[len(area)].append(area)
