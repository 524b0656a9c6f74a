"""Who the workers of a real Alluxio cluster are."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from kara_cache.alluxio.ring import Ring, RingWorker
from kara_cache.config import ClientConfig
from kara_cache.endpoint import Endpoint
from kara_cache.errors import ConfigError, FormatError, MembershipError
from kara_cache.membership.configured import etcd_client
from kara_cache.membership.records import live_prefix

logger = logging.getLogger(__name__)

_REFRESH_S = 30.0  # alluxiofs: 120; a lease lives for 15
_DOUBT_S = 2.0  # and this long after a worker failed, so that a wave of failures asks etcd once


class NativeMembers:
    """The ring of a fixed list, or of what etcd has now. Thread-safe, usable after `fork()`."""

    def __init__(
        self, config: ClientConfig, virtual_nodes: int, *, clock: Callable[[], float] = monotonic
    ) -> None:
        if not (config.etcd.hosts or config.worker_hosts):
            raise ConfigError(
                'dialect "alluxio": want etcd_hosts or worker_hosts, there is no private Alluxio'
            )
        self._virtual_nodes = virtual_nodes
        self._clock = clock
        self._prefix = live_prefix(config.cluster_name)
        self._etcd = None
        self._ring = Ring([], virtual_nodes)
        self._read_again = 0.0  # by the clock
        self._lock = threading.Lock()  # held by whoever asks etcd; the others use the ring there is
        if config.etcd.hosts:
            self._etcd = etcd_client(config.etcd, connect_timeout_s=config.connect_timeout_s)
        else:
            self._ring = Ring(_of_hosts(config.worker_endpoints), virtual_nodes)

    def ring(self) -> Ring:
        """An empty one while etcd has never answered."""
        if self._etcd is not None and self._clock() >= self._read_again:
            first = not self._ring.workers
            # Somebody who has a ring does not wait for whoever refreshes it.
            if self._lock.acquire(blocking=first, timeout=10.0 if first else -1):
                try:
                    self._refresh()
                finally:
                    self._lock.release()
        return self._ring

    def doubt(self) -> None:
        """A worker failed: the ring is worth reading again soon."""
        self._read_again = min(self._read_again, self._clock() + _DOUBT_S)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._etcd is not None:
            self._etcd.close()

    def _refresh(self) -> None:
        if self._clock() < self._read_again or self._etcd is None:
            return
        try:
            found = self._etcd.list(self._prefix)
        except MembershipError as exc:
            self._read_again = self._clock() + _DOUBT_S
            logger.warning("Alluxio's workers stay as known, %d of them: %s", len(self._ring.workers), exc)
            return
        workers = []
        for entry in found:
            try:
                workers.append(RingWorker.of_record(entry.value))
            except FormatError as exc:  # noqa: PERF203 - one bad value must not hide the others
                logger.warning("%s: %s", entry.key, exc)
        self._read_again = self._clock() + _REFRESH_S
        if workers:
            self._ring = Ring(workers, self._virtual_nodes)


def _of_hosts(endpoints: tuple[Endpoint, ...]) -> list[RingWorker]:
    """alluxiofs hashes the host alone; where several workers share one, the port tells them apart."""
    hosts = Counter(endpoint.host for endpoint in endpoints)
    return [
        RingWorker.of_host(endpoint.host, endpoint.port)
        if hosts[endpoint.host] == 1
        else replace(RingWorker.of_host(str(endpoint), endpoint.port), host=endpoint.host)
        for endpoint in endpoints
    ]
