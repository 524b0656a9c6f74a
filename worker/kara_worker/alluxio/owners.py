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
from dataclasses import dataclass

from kara_cache.cluster import RANKS
from kara_cache.membership.base import Membership, MembershipView, MemberState, WorkerInfo
from kara_cache.placement import Placement
from kara_cache.stripe import stripe_key

log = logging.getLogger(__name__)

_REFRESH_S = 0.05  # a look at a view that has not changed costs a microsecond
_PROBE_S = 0.5  # to connect to a worker before it is named to a client that has no other way
_PROBE_KEPT_S = 1.0


@dataclass(frozen=True, slots=True)
class _Table:
    view: MembershipView
    weights: dict[str, int]
    placement: Placement
    workers: dict[str, WorkerInfo]  # active ones, by id


class Owners:
    """Event loop only; the membership is looked at in a thread. Without one, this worker owns all."""

    def __init__(self, own: Callable[[], WorkerInfo], membership: Membership | None) -> None:
        self._own = own
        self._membership = membership
        self._table: _Table | None = None
        self._task: asyncio.Task[None] | None = None
        self._probes: dict[tuple[str, int], tuple[float, bool]] = {}  # address -> (when, whether it answered)

    async def start(self) -> None:
        if self._membership is not None:
            await asyncio.to_thread(self._refresh)  # the first look may wait for etcd
            self._task = asyncio.get_running_loop().create_task(self._refresh_loop())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._membership is not None:
            await asyncio.to_thread(self._membership.close)

    def ours(self, path: str, stripe: int, replicas: int) -> bool:
        """Whether pages of this stripe are to be kept here."""
        ranked = self._ranked(path, stripe)
        own = self._own().id
        return not ranked or any(worker.id == own for worker in ranked[: max(1, replicas)])

    async def owner(self, path: str, listener: int) -> WorkerInfo:
        """The worker to name for a path: the first that has the listener (an index of `alluxio_ports`)
        and can be reached; this one where there is none."""
        own = self._own()
        for worker in self._ranked(path, 0):
            if worker.id == own.id:
                return own
            port = worker.alluxio_ports[listener]
            if port and await self._answers(worker.host, port):
                return worker
        return own

    def _ranked(self, path: str, stripe: int) -> list[WorkerInfo]:
        table = self._table
        if table is None:
            return []
        ids = table.placement.owners(stripe_key(path, stripe), RANKS)
        return [table.workers[worker_id] for worker_id in ids if worker_id in table.workers]

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

    @property
    def known(self) -> int:
        """Active workers in the table; 0 where there is no membership."""
        return len(self._table.workers) if self._table is not None else 0

    def _refresh(self) -> None:
        assert self._membership is not None
        view, old = self._membership.view(), self._table
        weights = {worker.id: worker.capacity_bytes for worker in view.workers}
        placement = (
            old.placement
            if old is not None and old.weights == weights
            else Placement.build(weights, ranks=RANKS)
        )
        active = {worker.id: worker for worker in view.workers if worker.state is MemberState.ACTIVE}
        self._table = _Table(view, weights, placement, active)

    async def _refresh_loop(self) -> None:
        assert self._membership is not None
        while True:
            await asyncio.sleep(_REFRESH_S)
            if self._table is not None and self._membership.view() is self._table.view:
                continue
            try:
                await asyncio.to_thread(self._refresh)
            except Exception:  # a task's top: the old table serves on
                log.exception("the table of owners stays as it was")
