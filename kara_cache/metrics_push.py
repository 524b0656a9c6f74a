"""Hands the counts of this process to a worker, now and then and when the process ends."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from time import monotonic

from kara_cache.client_metrics import ClientCounts, ClientMetrics
from kara_cache.cluster import Cluster
from kara_cache.errors import KaraError
from kara_cache.slow_reads import SlowReads

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
_TIMEOUT_S = 0.5  # a read waits for it now and then, and so does the end of the process
_TRIES = 2  # workers


class MetricsPush:
    """Thread-safe. There is no thread: `due` is asked by reads, so an idle process sends nothing."""

    def __init__(
        self, metrics: ClientMetrics, slow: SlowReads, cluster: Cluster, *, at_first_use: Callable[[], None]
    ) -> None:
        """`at_first_use` is called once in every process that counts anything, also in forked ones."""
        self._metrics = metrics
        self._slow = slow
        self._cluster = cluster
        self._at_first_use = at_first_use
        self.after_fork()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._sending = threading.Lock()  # guards _sent
        self._sent = ClientCounts()
        self.due_at = 0.0  # monotonic; 0 until the first use

    def when_due(self) -> None:
        """Called by who saw that `due_at` has passed. At most one thread sends, the others go on."""
        first = not self.due_at
        self.due_at = monotonic() + INTERVAL_S
        if first:
            self._at_first_use()
        else:
            self.push()

    def push(self) -> bool:
        """Sends what was counted since the last time; False when no worker took it. Never raises for that."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            now = self._metrics.snapshot()
            document = now.since(self._sent)
            if not document:
                return True
            if slow := self._slow.take():
                document["slow_reads"] = slow
            if not self._send(json.dumps(document).encode()):
                return False
            self._sent = now
            return True
        finally:
            self._sending.release()

    def _send(self, body: bytes) -> bool:
        """Only to workers in good standing: counts are not worth a wait for a dead one."""
        try:
            table = self._cluster.table()
        except (KaraError, OSError) as exc:
            log.debug("metrics.push.failed: %s", exc)
            return False
        good = [worker_id for worker_id in sorted(table.live) if worker_id not in self._cluster.suspects]
        for worker_id in good[:_TRIES]:
            try:
                table.clients[worker_id].call("POST", "/client-metrics", monotonic() + _TIMEOUT_S, body=body)
            except (KaraError, OSError, ValueError) as exc:  # noqa: PERF203 - a network call each
                log.debug("metrics.push.failed worker %s: %s", worker_id, exc)
            else:
                return True
        return False
