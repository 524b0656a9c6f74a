"""What fills of one mount may use, so that a store that hangs keeps nobody else's readers waiting."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from kara_worker.byte_budget import ByteBudget
from kara_worker.mount_threads import MountThreads


@dataclass(frozen=True, slots=True)
class StoreLane:
    """Of one mount."""

    threads: Executor
    memory: ByteBudget


class StoreLanes:
    """Event loop only."""

    def __init__(self, threads: int, memory_bytes: int) -> None:
        """`threads` for each mount, and three quarters of the memory: the rest is left to other mounts,
        whatever one does."""
        self._threads = MountThreads(threads, "store")
        self._limit_bytes = memory_bytes - memory_bytes // 4
        self._lanes: dict[str, StoreLane] = {}

    def of(self, mount: str) -> StoreLane:
        lane = self._lanes.get(mount)
        if lane is None:
            memory = ByteBudget(self._limit_bytes, what="fill memory")
            lane = self._lanes[mount] = StoreLane(self._threads.of(mount), memory)
        return lane

    def shutdown(self) -> None:
        self._threads.shutdown()
