"""A rate that is kept on average, without bursts: each taker waits for the time that those before it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_LONGEST_SLEEP_S = 0.2  # so that a limit that is lifted, or a job that is stopped, is noticed


class Throttle:
    """Event loop only. `per_s` may be changed while some wait; None is no limit."""

    def __init__(self, per_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self._clock = clock
        self._free_at = 0.0  # when the next one may begin

    async def take(self, count: float) -> None:
        """Returns when `count` units may be used; being cancelled gives nothing back."""
        if self.per_s is None:
            return
        begin = max(self._clock(), self._free_at)
        self._free_at = begin + count / self.per_s
        while self.per_s is not None and (wait_s := begin - self._clock()) > 0:
            await asyncio.sleep(min(wait_s, _LONGEST_SLEEP_S))
