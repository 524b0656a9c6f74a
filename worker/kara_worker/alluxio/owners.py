"""Which worker keeps a path: the cluster's own placement, so that native and Alluxio clients share one copy.

The published clients up to 1.0.17 hash a path onto a ring of their own, but ask the worker that they find
there (`/v1/node`) for the one to read from, and later ones ask any worker. So the answer may name the
worker that the native placement names, and no page is kept twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from kara_cache.cluster import Cluster, Table
from kara_cache.membership.base import MemberState, WorkerInfo

log = logging.getLogger(__name__)

_REFRESH_S = 0.05  # a look at a view that has not changed costs a microsecond
_PROBE_S = 0.5  # to connect to a worker before it is named to a client that has no other way
_PROBE_KEPT_S = 1.0


class Owners:
    """Event loop only; a new table is built in a thread."""

    def __init__(self, own: Callable[[], WorkerInfo], cluster: Cluster) -> None:
        """`own` is this worker, which a fixed list knows by its address alone."""
        self._own = own
        self._cluster = cluster
        self._table: Table | None = None
        self._workers: dict[str, WorkerInfo] = {}  # active ones, by id
        self._task: asyncio.Task[None] | None = None
        self._probes: dict[tuple[str, int], tuple[float, bool]] = {}  # address -> (when, whether it answered)

    async def start(self) -> None:
        await self._refresh()  # the first look may wait for etcd
        self._task = asyncio.get_running_loop().create_task(self._refresh_loop())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def known(self) -> int:
        """Active workers in the table, this one included."""
        return len(self._workers)

    def ours(self, path: str, stripe: int, replicas: int) -> bool:
        """Whether pages of this stripe are to be kept here."""
        ranked = self._ranked(path, stripe)
        return not ranked or any(self._is_own(worker) for worker in ranked[: max(1, replicas)])

    async def owner(self, path: str, listener: int) -> WorkerInfo:
        """The worker to name for a path: the first that has the listener (an index of `alluxio_ports`)
        and can be reached; this one where there is none."""
        for worker in self._ranked(path, 0):
            if self._is_own(worker):
                break
            port = worker.alluxio_ports[listener]
            if port and await self._answers(worker.host, port):
                return worker
        return self._own()

    def _is_own(self, worker: WorkerInfo) -> bool:
        own = self._own()
        return worker.id == own.id or (worker.host, worker.port) == (own.host, own.port)

    def _ranked(self, path: str, stripe: int) -> list[WorkerInfo]:
        if self._table is None:
            return []
        ids = self._cluster.owners(self._table, path, stripe)
        return [self._workers[worker_id] for worker_id in ids if worker_id in self._workers]

    async def _answers(self, host: str, port: int) -> bool:
        known = self._probes.get((host, port))
        now = time.monotonic()
        if known is not None and now - known[0] < _PROBE_KEPT_S:
            return known[1]
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _PROBE_S)
        except (OSError, asyncio.TimeoutError):
            answered = False
        else:
            answered = True
            writer.close()
        self._probes[host, port] = now, answered
        return answered

    async def _refresh(self) -> None:
        table = await asyncio.to_thread(self._cluster.table)
        workers = table.view.workers
        self._workers = {worker.id: worker for worker in workers if worker.state is MemberState.ACTIVE}
        self._table = table

    async def _refresh_loop(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            if self._table is not None and self._cluster.membership.view() is self._table.view:
                continue
            try:
                await self._refresh()
            except Exception:  # a task's top: the old table serves on
                log.exception("the table of owners stays as it was")
