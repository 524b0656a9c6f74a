"""Workers named by hand: no etcd, no changes. Their ids are their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

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
        workers = [_worker(item.strip()) for item in items if item.strip()]
        ids = [worker.id for worker in workers]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"worker_hosts names a worker twice: got {', '.join(ids)}")
        self._view = MembershipView(tuple(sorted(workers, key=lambda worker: worker.id)), 0, "static")

    def __repr__(self) -> str:
        return f"<StaticMembership {', '.join(worker.id for worker in self._view.workers)}>"

    def view(self) -> MembershipView:
        return self._view

    def close(self) -> None:
        pass


def _worker(item: str) -> WorkerInfo:
    split = urlsplit(f"//{item}")
    try:
        host, port = split.hostname, split.port
    except ValueError as exc:
        raise ConfigError(f"worker_hosts: {item!r}: {exc}") from None
    if not host or not port or split.netloc != item or "@" in item or not host.isprintable() or " " in host:
        raise ConfigError(f"worker_hosts: want host:port, got {item!r}")
    return WorkerInfo(id=f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host=host, port=port)
