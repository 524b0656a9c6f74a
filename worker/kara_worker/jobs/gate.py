"""How many requests of load jobs run at a time: as many as configured and as the store bears, fewer while
readers have to wait."""

from __future__ import annotations

import asyncio
from collections import deque

LEAST = 2  # so that a load never starves, however busy the worker is
LATE_S = 0.01  # a hit takes 0.1 ms: this late, readers notice


class Gate:
    """A semaphore whose limit follows the event loop: halved when the loop is late while somebody reads, one
    more for each look at which it was not (as TCP shares a line, Chiu and Jain 1989). Event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._least = min(LEAST, most)
        self._calm = most  # what readers leave
        self._bound = most  # what the store bears
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        return min(self._calm, self._bound)

    def bound(self, most: int) -> None:
        """What the store bears, at the moment."""
        self._bound = max(1, min(most, self._most))
        self._admit()

    def note(self, late_s: float, *, readers: bool) -> None:
        """How late the loop was at the last look, and whether anybody has read since."""
        if readers and late_s > LATE_S:
            self._calm = max(self._least, self._calm // 2)
        elif self._calm < self._most:
            self._calm = self._calm + 1 if readers else self._most
            self._admit()

    async def __aenter__(self) -> None:
        if self._inside < self.limit and not self._waiting:
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._inside -= 1
                self._admit()
            else:
                self._waiting.remove(turn)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._inside -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._inside < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
