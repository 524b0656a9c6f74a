"""How long the event loop's thread waits for a processor, as Linux counts it."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from kara_worker.jobs.courtesy import Look

_SCHEDSTAT = "/proc/thread-self/schedstat"  # ns on a processor, ns in line for one, turns: sched-stats.rst


class ProcessorWaits:
    """Of the thread that makes it; `look` and `close` are that thread's. Where the kernel does not count
    (other systems, sandboxes) the thread never seems to wait."""

    def __init__(self) -> None:
        self._fd = -1  # none
        with suppress(OSError):
            self._fd = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        self._last = 0.0, 0.0, 0, 0
        self.look(0.0)

    def look(self, late_s: float) -> Look:
        """What has been since the last one; takes 10 us."""
        at, spent, (waited, turns) = time.monotonic(), time.process_time() - time.thread_time(), self._read()
        at_before, spent_before, waited_before, turns_before = self._last
        self._last = (at, spent, waited, turns)
        return Look(
            late_s,
            (waited - waited_before) / max(1, turns - turns_before) / 1e9,
            (spent - spent_before) / max(1e-3, at - at_before),
        )

    def _read(self) -> tuple[int, int]:
        if self._fd < 0:
            return self._last[2:]
        try:
            _, waited, turns = os.pread(self._fd, 128, 0).split()
            return int(waited), int(turns)
        except (OSError, ValueError):
            return self._last[2:]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
