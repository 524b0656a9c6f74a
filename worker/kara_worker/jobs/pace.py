"""How many requests at a time a store bears, from what it takes for one and how often it fails. Pure.

The limit follows the gradient of latency, as Netflix's concurrency-limits do (Gradient2): where a request
takes more than twice what it takes at best, the store, the line or this machine's processors are full, and
more requests only wait for each other. A store that refuses has the limit halved (AIMD, as TCP).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_TOLERANCE = 2.0  # latency that is not yet a queue
_SMOOTHING = 0.2  # of one observation
_FORGET_PER_S = 0.02  # the best of earlier is trusted so much less each second: stores change


class StorePace:
    """Requests of similar size are compared with each other; sizes are powers of four."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._limit = float(most)
        self._best: dict[int, tuple[float, float]] = {}  # size class: seconds, and when that was

    @property
    def limit(self) -> int:
        return max(1, round(self._limit))

    def took(self, length: int, seconds: float) -> None:
        """A request for `length` bytes was answered."""
        size, now = length.bit_length() // 2, self._clock()
        best, since = self._best.get(size, (seconds, now))
        best *= 1 + _FORGET_PER_S * (now - since)
        if seconds <= best:
            best = seconds
        self._best[size] = (best, now)
        ratio = max(0.5, min(1.0, _TOLERANCE * best / max(seconds, 1e-9)))
        wanted = min(float(self._most), self._limit * ratio + math.sqrt(self._limit))
        self._limit += _SMOOTHING * (wanted - self._limit)

    def failed(self) -> None:
        """The store refused, or gave no answer."""
        self._limit = max(1.0, self._limit / 2)
