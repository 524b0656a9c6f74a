"""Threads for calls to stores, those of each mount apart: a store that hangs keeps only its own."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor


class MountThreads:
    """Event loop only. A thread begins when it is needed for the first time."""

    def __init__(self, count: int, name: str) -> None:
        """`count` for each mount; `name` is what those of threads begin with."""
        self._count = count
        self._name = name
        self._pools: dict[str, ThreadPoolExecutor] = {}

    def __repr__(self) -> str:
        return f"<MountThreads {self._count} each for {', '.join(map(repr, self._pools)) or 'none'}>"

    def of(self, mount: str) -> Executor:
        """Of the mount of this name; of "" for what waits for none."""
        pool = self._pools.get(mount)
        if pool is None:
            name = f"{self._name}-{mount}" if mount else self._name
            pool = self._pools[mount] = ThreadPoolExecutor(self._count, thread_name_prefix=name)
        return pool

    def shutdown(self) -> None:
        """Calls that have not begun are given up; those that have are not waited for."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
