"""What workers are asked beside bytes of files: to drop pages, to say what they hold and how they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from time import monotonic
from typing import Any

from kara_cache.cluster import Cluster
from kara_cache.errors import CacheError, UnderStoreError, WorkerUnavailable
from kara_cache.failover import Call, Failover
from kara_cache.mount import Mount, MountTable
from kara_cache.stripe import STRIPE_BYTES
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import encode_info


class WorkerCalls:
    """Thread-safe; usable in a forked child after its parts were told. Paths are normal ones."""

    def __init__(self, cluster: Cluster, failover: Failover, *, look_timeout_s: float) -> None:
        """`look_timeout_s` bounds the answer of each worker that is only looked at."""
        self._cluster = cluster
        self._failover = failover
        self._look_timeout_s = look_timeout_s
        self._mounts = MountTable()  # as workers told when a url was resolved last

    def ask(
        self, method: str, name: str, path: str, *query: tuple[str, str | int], body: bytes | None = None
    ) -> Any:
        """As `CacheClient.ask`."""
        deadline = self._failover.deadline()
        call = Call(
            path, lambda worker, _: worker.call(method, name, deadline, *query, body=body), None, deadline
        )
        return self._failover.run(call)

    def free(self, path: str, *, recursive: bool) -> tuple[int, int]:
        """As `CacheClient.free`."""
        query: list[tuple[str, str | int]] = [("path", path)]
        if recursive:
            query.append(("recursive", 1))
        pages = freed = 0
        failed = []
        table = self._cluster.table()
        for worker_id, worker in table.clients.items():
            try:
                answer = worker.call("POST", "/free", self._failover.deadline(), *query)
                pages, freed = pages + int(answer["pages"]), freed + int(answer["bytes"])
            except CacheError as exc:  # noqa: PERF203 - a network call each
                if worker_id in table.live:
                    failed.append(f"{worker_id}: {exc}")
        if failed:
            raise WorkerUnavailable(
                f"free {path}: {pages} pages freed, but not on all workers: {'; '.join(failed)}"
            )
        return pages, freed

    def mounts(self) -> list[dict[str, Any]]:
        """As `CacheClient.mounts`."""
        return list(self.ask("GET", "/mounts", "/"))

    def add_mount(self, url: str, options: Mapping[str, Any]) -> str:
        """As `CacheClient.add_mount`."""
        body = json.dumps({"url": url, "options": dict(options)}).encode()
        return f"/{self.ask('POST', '/mounts', '/', body=body)['name']}"

    def resolve(self, url: str) -> str:
        """As `CacheClient.resolve`."""
        try:
            return self._mounts.from_url(url)
        except ValueError:  # a ConfigError is one: the operator may have added a mount since
            self._mounts = MountTable(Mount(mount["name"], mount["url"]) for mount in self.mounts())
            return self._mounts.from_url(url)

    def explain(self, info: FileInfo) -> dict[str, Any]:
        """As `CacheClient.explain`."""
        table = self._cluster.table()
        stripes = max(1, -(-info.size // STRIPE_BYTES))
        owned = [self._cluster.owners(table, info.path, stripe) for stripe in range(stripes)]
        owners = [{"stripe": stripe, "workers": [*ranked]} for stripe, ranked in enumerate(owned)]
        involved = dict.fromkeys(worker_id for ranked in owned for worker_id in ranked)
        answers = [self._look(worker_id, "/explain", ("path", info.path)) for worker_id in involved]
        return {"info": encode_info(info), "owners": owners, "workers": answers}

    def statuses(self) -> list[dict[str, Any]]:
        """As `CacheClient.worker_status`."""
        return [
            {"id": worker.id, "address": f"{worker.host}:{worker.port}", "state": worker.state.value}
            | self._look(worker.id, "/worker")
            for worker in self._cluster.table().view.workers
        ]

    def slowest_reads(self, count: int) -> list[dict[str, Any]]:
        """As `CacheClient.slowest_reads`."""
        answers = [self._look(worker_id, "/slow-reads") for worker_id in self._cluster.table().clients]
        reads = [read for answer in answers for read in answer.get("reads", ())]
        return sorted(reads, key=lambda read: -float(read["total_s"]))[:count]

    def _look(self, worker_id: str, name: str, *query: tuple[str, str | int]) -> dict[str, Any]:
        worker = self._cluster.table().clients.get(worker_id)
        if worker is None:
            return {"id": worker_id, "error": "gone"}
        deadline = monotonic() + self._look_timeout_s
        try:
            return {"id": worker_id} | dict(worker.call("GET", name, deadline, *query)) | {"id": worker_id}
        except (CacheError, UnderStoreError) as exc:
            return {"id": worker_id, "error": str(exc)}
