"""The listeners of the dialect: built from the configuration, started and stopped with the worker."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kara_cache.cluster import Cluster
from kara_cache.endpoint import is_loopback
from kara_cache.membership.base import WorkerInfo
from kara_worker.access import AccessControl
from kara_worker.alluxio.api import DICT_FORM, LIST_FORM, AlluxioApi, ApiParts
from kara_worker.alluxio.file_bytes import FileBytes
from kara_worker.alluxio.load_answers import LoadAnswers
from kara_worker.alluxio.owner_reads import OwnerReads
from kara_worker.alluxio.owners import Owners
from kara_worker.alluxio.s3_buckets import S3Buckets
from kara_worker.alluxio.s3_multipart import S3Multipart
from kara_worker.alluxio.s3_objects import S3Objects
from kara_worker.alluxio.s3_port import S3Port
from kara_worker.alluxio.s3_target import S3Access
from kara_worker.alluxio.s3_uploads import S3Uploads
from kara_worker.alluxio.ufs_names import UfsNames
from kara_worker.config import WorkerConfig
from kara_worker.file_facts import FileFacts
from kara_worker.http.server import Application, HttpServer
from kara_worker.jobs.board import LoadBoard
from kara_worker.metrics import WorkerMetrics
from kara_worker.page_cache import PageCache

log = logging.getLogger(__name__)

_THREADS = ((16, "alluxio-call"), (4, "alluxio-change"))
_UPLOADS = "uploads"  # beside the pages: parts of uploads are as large as they are


class AlluxioListeners:
    """Those that the configuration gives a port. Event loop only."""

    def __init__(
        self,
        config: WorkerConfig,
        cache: PageCache,
        facts: FileFacts,
        metrics: WorkerMetrics,
        *,
        own: Callable[[], WorkerInfo],
        cluster: Cluster,
        board: LoadBoard | None,
    ) -> None:
        """`own` describes this worker, with the ports of these listeners once they are known; `cluster`
        is all workers, and remains the caller's to close."""
        self._config = config
        self.ports = (0, 0, 0)
        self._servers: list[HttpServer] = []
        self._applications: list[AlluxioApi | S3Port] = []
        self._closing = contextlib.AsyncExitStack()
        owner_reads = None
        if config.etcd.hosts or config.worker_hosts:
            owner_reads = OwnerReads(config, cluster.membership)
            self._closing.push_async_callback(owner_reads.close)
        self._owners = Owners(own, cluster)
        # of our own: native clients' calls must not wait for what these clients do
        executor, changes = (ThreadPoolExecutor(count, name) for count, name in _THREADS)
        for pool in (executor, changes):
            self._closing.callback(pool.shutdown, wait=False, cancel_futures=True)
        self._closing.push_async_callback(self._owners.close)
        self._parts = ApiParts(
            cache=cache,
            stores=cache.stores,
            facts=facts,
            files=FileBytes(cache, facts, self._owners, metrics, owner_reads=owner_reads),
            names=UfsNames(lambda: cache.stores.mounts),
            owners=self._owners,
            loads=LoadAnswers(board),
            metrics=metrics,
            executor=executor,
            changes=changes,
            deadline_s=config.alluxio.deadline_s,
        )

    async def open(self) -> None:
        """Returns when all listen. Raises OSError for a port that is taken."""
        await self._owners.start()
        self.ports = (
            await self._listen("list", lambda: self._api("list", LIST_FORM)),
            await self._listen("dict", lambda: self._api("dict", DICT_FORM)),
            await self._listen("data", self._s3),
        )

    def drain(self) -> None:
        """From now on requests are told to go elsewhere."""
        for application in self._applications:
            application.draining = True

    async def close(self, drain_s: float = 0.0) -> None:
        """Running requests may end within `drain_s`. Idempotent."""
        servers, self._servers = self._servers, []
        for server in servers:
            await server.close(drain_s)
        await self._closing.aclose()

    def gauges(self) -> dict[str, float]:
        """For /metrics, by name after `kara_worker_`."""
        connections = sum(len(server.connections) for server in self._servers)
        return {"alluxio_connections": connections, "alluxio_known_workers": self._owners.known}

    def _api(self, name: str, form: int) -> AlluxioApi:
        alluxio = self._config.alluxio
        anonymous = name in alluxio.anonymous
        access = AccessControl(() if anonymous else self._config.secrets())
        api = AlluxioApi(self._parts, access, form=form, writes=not anonymous or alluxio.anonymous_writes)
        self._applications.append(api)
        return api

    def _s3(self) -> S3Port:
        parts, alluxio = self._parts, self._config.alluxio
        access = S3Access(
            alluxio.keys(),
            anonymous="data" in alluxio.anonymous,
            anonymous_writes=alluxio.anonymous_writes,
        )
        uploads = S3Uploads(Path(self._config.store.page_dirs[0]) / _UPLOADS, parts.executor)
        self._closing.callback(uploads.close)
        objects = S3Objects(
            parts.stores, parts.facts, parts.files, parts.metrics, parts.executor, parts.changes
        )
        multipart = S3Multipart(parts.stores, parts.facts, uploads, parts.metrics, parts.changes)
        buckets = S3Buckets(parts.stores, objects, uploads, parts.executor)
        port = S3Port(
            parts.stores,
            access,
            objects,
            multipart,
            buckets,
            parts.metrics,
            deadline_s=parts.deadline_s,
        )
        self._applications.append(port)
        return port

    async def _listen(self, name: str, make: Callable[[], Application]) -> int:
        alluxio = self._config.alluxio
        wanted = alluxio.port(name)
        if wanted is None:
            return 0
        server = HttpServer(make(), name=f"alluxio-{name}")
        self._servers.append(server)
        port = await server.listen_tcp(alluxio.host, wanted)
        if name in alluxio.anonymous:
            log.warning(
                "alluxio %s listener on %s:%d asks nobody who they are: files of all mounts can be read%s%s",
                name,
                alluxio.host,
                port,
                ", changed and deleted" if alluxio.anonymous_writes else "",
                "" if is_loopback(alluxio.host) else " by everybody who can connect",
            )
        else:
            log.info("alluxio %s listener on %s:%d", name, alluxio.host, port)
        return port
