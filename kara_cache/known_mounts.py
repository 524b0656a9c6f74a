"""What workers last said of their mounts: how many owners keep a page, and whether files ever change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from kara_cache.cluster import Cluster
from kara_cache.errors import KaraError

log = logging.getLogger(__name__)

_KEEP_S = 60.0
_TIMEOUT_S = 0.5  # the first read of a process waits for it, and it only decides which owner is asked first


class KnownMounts:
    """Thread-safe without a lock: at worst two threads ask at the same time."""

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float] = monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._replicas: dict[str, int] = {}  # by mount
        self._immutable: frozenset[str] = frozenset()  # names of mounts
        self.told: Any = None  # the document; another object when it is another one
        self._ask_at = float("-inf")

    def replicas(self, path: str) -> int:
        """How many owners of a stripe keep its pages; 1 where nobody said otherwise. Never raises."""
        if self._clock() >= self._ask_at:
            self._ask_at = self._clock() + _KEEP_S
            self._ask()
        return self._replicas.get(path[1:].partition("/")[0], 1)

    def is_immutable(self, path: str) -> bool:
        """Whether what is known of a file holds for ever; False where nobody said so. Never raises."""
        self.replicas(path)
        return path[1:].partition("/")[0] in self._immutable

    def _ask(self) -> None:
        try:
            table = self._cluster.table()
            for worker_id in table.live:
                if worker_id not in self._cluster.suspects:
                    worker = table.clients[worker_id]
                    self._take(worker.call("GET", "/mounts", monotonic() + _TIMEOUT_S))
                    return
        except (KaraError, OSError, ValueError) as exc:
            log.debug("mounts.failed: %s", exc)

    def _take(self, document: Any) -> None:
        try:
            replicas = {str(mount["name"]): int(mount["replicas"]) for mount in document}
            immutable = frozenset(m["name"] for m in document if m.get("freshness") == "immutable")
        except (AttributeError, TypeError, KeyError, ValueError) as exc:
            log.debug("mounts.failed: %r", exc)
            return
        self._replicas, self._immutable = replicas, immutable
        if document != self.told:
            self.told = document
