"""Workers named by hand: no etcd, no changes. Their ids are their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from kara_cache.endpoint import Endpoint
from kara_cache.errors import ConfigError
from kara_cache.membership.base import MembershipView, WorkerInfo


class StaticMembership:
    """A `Membership` of "host:port,host:port" (IPv6 as "[::1]:port"), or of a list of such.

    Every client must be given the same list, or they will look for the same page on different workers.

    Raises:
        ConfigError: an item has no port or occurs twice. An empty list is a view without workers.
    """

    def __init__(self, worker_hosts: str | Sequence[str]) -> None:
        items = worker_hosts.split(",") if isinstance(worker_hosts, str) else worker_hosts
        endpoints = [Endpoint.parse(item) for item in items if item.strip()]
        if len(set(endpoints)) < len(endpoints):
            raise ConfigError(f"worker_hosts names a worker twice: got {', '.join(map(str, endpoints))}")
        workers = [WorkerInfo(id=str(place), host=place.host, port=place.port) for place in endpoints]
        self._view = MembershipView(tuple(sorted(workers, key=lambda worker: worker.id)), 0, "static")

    def __repr__(self) -> str:
        return f"<StaticMembership {', '.join(worker.id for worker in self._view.workers)}>"

    def view(self) -> MembershipView:
        return self._view

    def close(self) -> None:
        pass
