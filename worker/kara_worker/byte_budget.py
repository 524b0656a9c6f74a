"""A bound on bytes in flight, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque

from kara_cache.errors import WorkerBusy


class ByteBudget:
    """Event loop only. One request larger than the whole budget is let through alone."""

    def __init__(self, limit: int, *, what: str) -> None:
        self.limit = limit
        self.used = 0
        self._what = what
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take(self, count: int) -> bool:
        """Whether there is room now, and nobody who came before waits for some."""
        if self._waiting or not self._fits(count):
            return False
        self.used += count
        return True

    async def acquire(self, count: int, timeout_s: float) -> None:
        """Raises WorkerBusy when there was no room for `timeout_s` seconds."""
        if self.take(count):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, turn)
        self._waiting.append(entry)
        try:
            await asyncio.wait_for(asyncio.shield(turn), timeout_s)
        except (asyncio.TimeoutError, asyncio.CancelledError) as exc:
            if turn.done():
                self.release(count)
            else:
                turn.cancel()
                self._waiting.remove(entry)
                self._admit()
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise WorkerBusy(
                f"no room for {count} bytes of {self._what} in {timeout_s} s: "
                f"{self.used} of {self.limit} in use"
            ) from None

    def release(self, count: int) -> None:
        self.used -= count
        self._admit()

    def _fits(self, count: int) -> bool:
        return self.used == 0 or self.used + count <= self.limit

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            count, turn = self._waiting.popleft()
            if not turn.done():
                self.used += count
                turn.set_result(None)
