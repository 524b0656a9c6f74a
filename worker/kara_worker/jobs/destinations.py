"""Which worker an errand goes to, and how long one that is away is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable

from kara_cache.cluster import Cluster, Table
from kara_cache.membership.base import MembershipView, MemberState
from kara_cache.stripe import stripe_key
from kara_worker.jobs.errand import Errand

RANKS = 3  # of the placement: more copies than this are not placed


class Destinations:
    """The owners of pages as a coordinator sees them; for one thread.

    One that is silent keeps its part for `patience_s`, also when its lease ends meanwhile: what another one
    fetches in its place is not where readers look when it is back, and it would fetch it again then.
    """

    def __init__(
        self, cluster: Cluster, *, patience_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._patience_s = patience_s
        self._clock = clock
        self._silent: dict[str, float] = {}  # workers that do not answer, since when
        self._view: MembershipView | None = None
        self._passive: frozenset[str] = frozenset()  # of the view

    def of(self, errand: Errand) -> str | None:
        """The owner of the errand's rank, or who stands in for it; None while it is waited for."""
        table, avoid = self._cluster.table(), self._cluster.suspects.avoid
        owners = table.placement.owners(stripe_key(errand.info.path, errand.stripe), RANKS)
        expected = [worker for worker in owners if self._is_expected(table, worker)]
        if len(expected) <= errand.rank:
            return None
        worker = expected[errand.rank]
        if worker in table.live and not avoid(worker):
            return worker
        if self._is_patient(worker):
            return None
        good = [worker for worker in owners if worker in table.live and not avoid(worker)]
        return good[errand.rank] if len(good) > errand.rank else None

    def copies(self, wanted: int) -> int:
        """How many owners a page can have."""
        return min(wanted, RANKS, max(1, len(self._cluster.table().live)))

    def answered(self, worker: str) -> None:
        self._cluster.suspects.answered(worker)
        self._silent.pop(worker, None)

    def failed(self, worker: str) -> None:
        """It did not answer."""
        self._cluster.suspects.failed(worker)
        self._silent.setdefault(worker, self._clock())

    def _is_expected(self, table: Table, worker: str) -> bool:
        if worker in table.live:
            return True
        if self._view is not table.view:
            self._view = table.view
            self._passive = frozenset(w.id for w in table.view.workers if w.state is MemberState.PASSIVE)
        return worker in self._passive and self._is_patient(worker)

    def _is_patient(self, worker: str) -> bool:
        now = self._clock()
        return now - self._silent.setdefault(worker, now) < self._patience_s
