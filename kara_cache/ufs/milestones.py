"""When whoever waits for a read's bytes is told how many there are."""

from __future__ import annotations

import time
from collections.abc import Callable

from kara_cache.ufs.base import Progress

STEP_BYTES = 1 << 20
STEP_S = 0.005


class Milestones:
    """The first bytes at once, then each MiB, or what came in 5 ms.

    To be told wakes an event loop: four times a MiB took a third of a worker's own time for it (measured).
    """

    def __init__(self, progress: Progress | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.told: int | None = None  # bytes that somebody may be using
        self._progress = progress
        self._clock = clock
        self._at = 0.0

    def passed(self, done: int) -> None:
        """`done` bytes are valid."""
        if self._progress is None or done <= (self.told or 0):
            return
        now = self._clock()
        if not self.told or done - self.told >= STEP_BYTES or now - self._at >= STEP_S:
            self._at = now
            self._tell(done)

    def ended(self, done: int) -> None:
        """All that there are are."""
        if self._progress is not None and done != self.told:
            self._tell(done)

    def _tell(self, done: int) -> None:
        self.told = done
        assert self._progress is not None
        self._progress(done)
