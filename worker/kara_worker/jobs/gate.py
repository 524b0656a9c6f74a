"""How many requests of load jobs run at a time: as many as configured and as the store bears, fewer while
readers have to wait."""

from __future__ import annotations

import asyncio
from collections import deque

from kara_worker.jobs.courtesy import Courtesy, Look


class Gate:
    """A semaphore whose limit follows what the store bears and what readers leave. Event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._courtesy = Courtesy(most)
        self._bound = most  # what the store bears
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        return min(self._courtesy.limit, self._bound)

    def bound(self, most: int) -> None:
        """What the store bears, at the moment."""
        self._bound = max(1, min(most, self._most))
        self._admit()

    def note(self, look: Look, *, readers: bool) -> None:
        """What the worker saw of itself, and whether anybody reads."""
        self._courtesy.note(look, readers=readers)
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
