"""The slowest reads of this process since it last told a worker of them."""

from __future__ import annotations

import heapq
import threading
import time
from typing import Any

from kara_cache.read_stages import Marks, SlowRead, stages_of

KEPT = 16  # between two pushes
_LEAST_S = 0.002  # faster than this is nobody's question


class SlowReads:
    """Thread-safe. A read that is not among the slowest costs one comparison."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._lock = threading.Lock()  # guards _heap
        self._heap: list[tuple[float, int, SlowRead]] = []
        self._count = 0
        self.least_s = _LEAST_S  # a read is worth a call of `add` from here on

    def add(
        self,
        path: str,
        start: int,
        length: int,
        worker: str,
        marks: Marks,
        *,
        total_s: float,
        detour_s: float,
    ) -> None:
        stages = stages_of(marks, total_s=total_s, detour_s=detour_s)
        read = SlowRead(time.time(), path, start, length, worker, total_s, stages)
        with self._lock:
            self._count += 1
            item = (total_s, self._count, read)
            if len(self._heap) < KEPT:
                heapq.heappush(self._heap, item)
            else:
                heapq.heappushpop(self._heap, item)
                self.least_s = self._heap[0][0]

    def take(self) -> list[dict[str, Any]]:
        """Those of the time since the last call, as documents."""
        with self._lock:
            heap, self._heap = self._heap, []
            self.least_s = _LEAST_S
        return [read.document() for _, _, read in sorted(heap, key=lambda item: -item[0])]
