"""What the status page shows: this worker, all members by their own word, loads, detours, hot files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from kara_cache.cluster import Cluster
from kara_cache.errors import KaraError
from kara_cache.load_job import job_document
from kara_cache.membership.base import WorkerInfo
from kara_worker.hot_paths import HotPaths
from kara_worker.jobs.board import LoadBoard

_FRESH_S = 1.0  # a dozen open pages ask the members no more often than one
_ANSWER_S = 2.0  # a member that is slower is shown without its numbers
_HOT = 20
_LOADS = 20
_FALLBACKS = 20


class ClusterStatus:
    """Event loop only; members are asked in `executor`, all at the same time."""

    def __init__(
        self,
        own: Callable[[], dict[str, Any]],
        cluster: Cluster,
        board: LoadBoard,
        hot: HotPaths,
        executor: Executor,
        *,
        show_paths: bool,
    ) -> None:
        """Without `show_paths` no file is named: the admin port asks nobody who he is."""
        self._own = own
        self._cluster = cluster
        self._board = board
        self._hot = hot
        self._executor = executor
        self._show_paths = show_paths
        self._last: dict[str, Any] = {}
        self._last_at = 0.0
        self._asking = asyncio.Lock()

    async def document(self) -> dict[str, Any]:
        async with self._asking:
            if time.monotonic() - self._last_at > _FRESH_S:
                self._last = await self._made()
                self._last_at = time.monotonic()
        return self._last

    async def _made(self) -> dict[str, Any]:
        own = self._own()
        members, loads = await asyncio.gather(self._members(own), self._loads())
        return {
            "at": time.time(),
            "worker": own,
            "members": members,
            "loads": loads,
            "fallbacks": _newest(members),
            "hot_paths": self._hot.top(_HOT) if self._show_paths else None,
        }

    async def _members(self, own: Mapping[str, Any]) -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        view = await loop.run_in_executor(self._executor, self._cluster.membership.view)
        others = [worker for worker in view.workers if worker.id != own["id"]]
        asked = [loop.run_in_executor(self._executor, self._ask, worker) for worker in others]
        answers = {
            worker.id: answer for worker, answer in zip(others, await asyncio.gather(*asked), strict=True)
        }
        # a worker that is gone cannot say so: its place does
        states = {worker.id: worker.state.value for worker in others}
        return [
            {
                "id": worker.id,
                "address": f"{worker.host}:{worker.port}",
                "admin_port": worker.admin_port,
                **answers.get(worker.id, own),
                "state": states.get(worker.id, own["state"]),
            }
            for worker in view.workers
        ]

    def _ask(self, worker: WorkerInfo) -> dict[str, Any]:
        client = self._cluster.table().clients.get(worker.id)
        if client is None:
            return {}
        try:
            return dict(client.call("GET", "/worker", time.monotonic() + _ANSWER_S))
        except (KaraError, OSError) as exc:
            return {"error": str(exc)}

    async def _loads(self) -> list[dict[str, Any]]:
        try:
            jobs = await asyncio.wait_for(self._board.list(), _ANSWER_S)
        except (KaraError, asyncio.TimeoutError):
            return []
        documents = [job_document(job) for job in jobs[:_LOADS]]
        if not self._show_paths:
            for document in documents:
                document |= {"path": "", "receipt": None}
        return documents


def _newest(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each client tells one worker of its detours, so they are gathered from all."""
    told = [detour for member in members for detour in member.pop("fallbacks", ())]
    return sorted(told, key=lambda detour: -float(detour["at"]))[:_FALLBACKS]
