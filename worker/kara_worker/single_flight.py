"""One execution per key at a time; everyone who asks meanwhile gets its result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """The work runs in a task of its own: a caller that is cancelled neither stops it nor fails the others.

    Event loop only. A failed execution fails everyone who waited for it, and is forgotten.
    """

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[V]] = {}

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(self._execute(key, work))
            self._running[key] = task
        return await asyncio.shield(task)

    async def _execute(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        try:
            return await work()
        finally:
            del self._running[key]

    def __len__(self) -> int:
        return len(self._running)
