"""A worker's life: start, serve, drain, stop. It builds everything else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kara_cache
from kara_cache.endpoint import is_loopback
from kara_cache.errors import ConfigError
from kara_cache.membership.base import MemberState, WorkerInfo
from kara_cache.membership.configured import etcd_client
from kara_worker.access import AccessControl
from kara_worker.admin import AdminServer
from kara_worker.alluxio.listeners import AlluxioListeners
from kara_worker.cluster_status import ClusterStatus
from kara_worker.config import WorkerConfig
from kara_worker.data_port.client_totals import ClientTotals
from kara_worker.data_port.private_mounts import PrivateMounts
from kara_worker.data_port.server import PageServer
from kara_worker.data_port.traced_server import TracedServer
from kara_worker.eviction import make_policy
from kara_worker.file_facts import FileFacts
from kara_worker.handover.endpoints import HandoverEndpoints
from kara_worker.handover.giver import Handover
from kara_worker.handover.guests import Guests
from kara_worker.http import send_costs
from kara_worker.http.server import HttpServer
from kara_worker.identity import DirectoryLock, boot_id, load_or_create_identity
from kara_worker.jobs.load_metrics import LoadMetrics
from kara_worker.jobs.loads import Loads
from kara_worker.long_lived import LongLived
from kara_worker.metrics import WorkerCollector, WorkerMetrics
from kara_worker.mount_threads import MountThreads
from kara_worker.mounted_stores import MountedStores
from kara_worker.page_cache import PageCache
from kara_worker.page_stores import open_page_store
from kara_worker.pages.page_file import group_token
from kara_worker.registration import Registration

log = logging.getLogger(__name__)

_EXPIRE_EVERY_S = 30.0
_CONFLICT_EVERY_S = 0.5
_DRAIN_NOTICE_S = 0.5  # time for clients' watches to see "draining" before requests are refused


class WorkerDaemon:
    """One worker: one process, one identity, its own page directories. `run` returns after a drain."""

    def __init__(self, config: WorkerConfig, *, record: Path | None = None) -> None:
        """`record` is a file that says where this worker is while it lives: for private workers."""
        self._config = config
        self._record = record
        self._registration: Registration | None = None
        self._alluxio: AlluxioListeners | None = None
        self._stop = asyncio.Event()
        self._state = MemberState.ACTIVE
        self._metrics = WorkerMetrics()
        self._clients = ClientTotals()
        self._load_metrics = LoadMetrics()
        self._long_lived = LongLived()

    async def run(self) -> None:
        """Serves until a signal or `stop`, then drains. Raises ConfigError before anything listens."""
        config = self._config
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(32, thread_name_prefix="send"))
        async with contextlib.AsyncExitStack() as stack:
            with self._long_lived.made():
                self._build(stack)
            await self._listen(stack)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
            self._announce()
            background = [loop.create_task(self._expire_loop())]
            if config.life.idle_exit_s:
                background.append(loop.create_task(self._idle_loop(config.life.idle_exit_s)))
            if self._registration is not None:
                background.append(loop.create_task(self._conflict_loop(self._registration)))
            await self._stop.wait()
            await self._drain()
            for task in background:
                task.cancel()
            if self._registration is not None and self._registration.conflict is not None:
                raise self._registration.conflict

    def stop(self) -> None:
        """Begins the drain; idempotent."""
        self._stop.set()

    def _build(self, stack: contextlib.AsyncExitStack) -> None:
        config = self._config
        self._stores = MountedStores(config.mounts, self._metrics)
        stack.callback(self._stores.close)
        for mount in config.mounts:
            self._stores.store(mount)  # a wrong option or a missing secret shows now, not at the first read
        store = config.store
        directories = [Path(directory) for directory in store.page_dirs]
        quotas = {mount.name: mount.quota_bytes for mount in config.mounts if mount.quota_bytes is not None}
        policy = make_policy(store.eviction, guard=store.guard, groups=[*map(group_token, quotas)])
        self._pages = open_page_store(store, policy, quotas=quotas)
        stack.callback(self._pages.close)
        # the store has claimed and locked the directories, or refused them with nothing touched
        self._fingerprint = stack.enter_context(DirectoryLock(directories[0])).fingerprint
        self.identity = load_or_create_identity(directories[0])
        chosen = store.sendfile_above_bytes
        self._sendfile_above = send_costs.measured(directories[0]) if chosen is None else chosen
        self._threads = MountThreads(16, "call")
        stack.callback(self._threads.shutdown)
        self._cache = PageCache(
            self._pages,
            self._stores,
            self._metrics,
            store_threads=config.fill.ufs_threads,
            fill_memory_bytes=config.fill.fill_memory_bytes,
            write_queue_bytes=config.fill.write_queue_bytes,
        )
        stack.push_async_callback(self._cache.close, config.life.drain_timeout_s)
        self._facts = FileFacts(self._stores, self._threads)
        self._access = AccessControl(config.secrets())
        self._server = self._server_class(stack)(
            self._cache,
            self._stores,
            self._facts,
            self._access,
            self._metrics,
            self._clients,
            self._threads,
            status=self.status,
            sendfile_above=self._sendfile_above,
            add_mount=PrivateMounts(self._stores).add if config.private else None,
        )
        collector = WorkerCollector(
            self._metrics,
            page_stats=self._pages.stats,
            gauges=self._gauges,
            counters=self._counters,
            clients=lambda: (*self._clients.metrics(), *self._load_metrics.families()),
        )
        self._exposition = collector.exposition

    def _server_class(self, stack: contextlib.AsyncExitStack) -> Callable[..., PageServer]:
        if not self._config.trace:
            return PageServer
        try:
            return TracedServer.of(self.identity, stack)
        except ModuleNotFoundError as exc:
            raise ConfigError(f"trace needs {exc.name}: pip install 'kara-cache[otel]'") from exc

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        config = self._config
        data = HttpServer(self._server, name="data")
        self._data = data
        stack.push_async_callback(data.close)
        self._socket_path = await self._listen_unix(data, stack)
        self._port = self._admin_port = 0
        if not config.private:
            self._port = await data.listen_tcp(config.listen.host, config.listen.port, config.server_tls())
            self._admin = AdminServer(
                ready=self._unready,
                metrics=self._exposition,
                status=self.status,
                cluster=self._cluster_status,
            )
            admin = HttpServer(self._admin, name="admin")
            stack.push_async_callback(admin.close)
            self._admin_port = await admin.listen_tcp(config.admin.host, config.admin.port)
        self._loads = Loads(
            config,
            self.info(),
            self._cache,
            self._facts,
            self._access,
            self._load_metrics,
            self._threads.of(""),
            reads=self._page_reads,
        )
        stack.push_async_callback(self._loads.close)
        self._guests = Guests(self._cache, self._loads.cluster, own=self.identity)
        stack.push_async_callback(self._guests.close)
        self._handover = Handover(
            self._cache,
            self._loads.cluster,
            self._metrics.hot_paths.lately,
            config.handover,
            own=self.identity,
        )
        self._status_page = ClusterStatus(
            self.status,
            self._loads.cluster,
            self._loads.board,
            self._metrics.hot_paths,
            self._threads.of(""),
            show_paths=config.admin.paths or is_loopback(config.admin.host),
        )
        self._server.add_routes(self._loads.endpoints.routes())
        self._server.add_routes(self._loads.rule_endpoints.routes())
        self._server.add_routes(HandoverEndpoints(self._cache, self._guests, self._access).routes())
        self._loads.start()
        if config.alluxio.enabled:
            self._alluxio = AlluxioListeners(
                config,
                self._cache,
                self._facts,
                self._metrics,
                own=self.info,
                cluster=self._loads.cluster,
                board=self._loads.board,
            )
            stack.push_async_callback(self._alluxio.close)
            await self._alluxio.open()
        if config.etcd.hosts:
            self._registration = self._register()
            stack.enter_context(self._registration)

    def _register(self) -> Registration:
        config = self._config
        return Registration(
            etcd_client(config.etcd),
            config.cluster_name,
            self.info(),
            lease_ttl_s=round(config.life.lease_ttl_s),
            passive_grace_s=config.life.passive_grace_s,
            directory=self._fingerprint,
            alluxio_port=self._alluxio.ports[0] if self._alluxio is not None else 0,
        )

    async def _listen_unix(self, data: HttpServer, stack: contextlib.AsyncExitStack) -> str:
        directory = Path(self._config.listen.socket_dir)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{self.identity}.sock"
        path.unlink(missing_ok=True)  # left by a process that was killed: the directory lock is ours
        await data.listen_unix(str(path))
        path.chmod(0o600)
        stack.callback(path.unlink, missing_ok=True)
        return str(path)

    def info(self) -> WorkerInfo:
        """How this worker is registered."""
        config = self._config
        return WorkerInfo(
            id=self.identity,
            host=config.listen.advertise_host or config.listen.host,
            port=self._port,
            socket_path=self._socket_path,
            boot_id=boot_id(),
            capacity_bytes=config.store.capacity_bytes,
            state=self._state,
            admin_port=self._admin_port,
            software=kara_cache.__version__,
            alluxio_ports=self._alluxio.ports if self._alluxio is not None else (0, 0, 0),
        )

    def status(self) -> dict[str, Any]:
        """What `GET /worker` tells: no paths, no options."""
        stats = self._pages.stats()
        return {
            "id": self.identity,
            "software": kara_cache.__version__,
            "cluster": self._config.cluster_name,
            "state": self._state.value,
            "page_bytes": self._config.store.page_bytes,
            "capacity_bytes": stats.capacity_bytes,
            "used_bytes": stats.bytes,
            "pages": stats.pages,
            "loading": stats.loading,
            "private": self._config.private,
            "sendfile_above_bytes": self._sendfile_above,
            **self._metrics.totals(),
            "fallbacks": self._clients.recent_fallbacks(),
        }

    async def _cluster_status(self) -> dict[str, Any]:
        return await self._status_page.document()

    def _announce(self) -> None:
        """One line of JSON on stdout: who waits for this process may connect now."""
        ready = {
            "ready": True,
            "id": self.identity,
            "pid": os.getpid(),
            "port": self._port,
            "admin_port": self._admin_port,
            "socket_path": self._socket_path,
        }
        if self._alluxio is not None:
            ready["alluxio_ports"] = self._alluxio.ports
        if self._record is not None:
            partial = self._record.with_suffix(".new")
            partial.write_text(json.dumps({**ready, "boot_id": boot_id()}))
            partial.replace(self._record)
        sys.stdout.write(json.dumps(ready) + "\n")  # at once: the other workers of a node write there too
        sys.stdout.flush()
        log.info("worker %s serves %s:%d", self.identity, self._config.listen.host, self._port)

    def _unready(self) -> str:
        return "draining" if self._stop.is_set() else ""

    def _gauges(self) -> dict[str, float]:
        lease = self._registration.lease_state if self._registration is not None else "none"
        return {
            "connections": len(self._data.connections),
            "fills_running": self._cache.loading,
            "draining": float(self._stop.is_set()),
            "lease_held": float(lease == "held"),
            "guest_bytes": self._guests.bytes,
            **(self._alluxio.gauges() if self._alluxio is not None else {}),
        }

    def _page_reads(self) -> int:
        metrics = self._metrics
        return metrics.page_hits + metrics.page_misses + metrics.page_joins

    def _counters(self) -> dict[str, dict[str, int]]:
        if self._registration is None:
            return {}
        given, guests = self._handover.given, self._guests
        return {
            "lease_events": self._registration.counters(),
            "handover_pages": {"given": given.pages, "taken": guests.pages_taken},
            "handover_bytes": {"given": given.bytes, "taken": guests.bytes_taken},
        }

    async def _drain(self) -> None:
        """Pages first, while everybody still reads here: whoever is asked next has them then. Then peers:
        clients that know go elsewhere, those that do not get an answer that says so."""
        log.info("worker %s drains", self.identity)
        await self._guests.close()
        if self._registration is not None and self._registration.conflict is None:
            await self._handover.give()
        self._state = MemberState.DRAINING
        await self._loads.close()
        if self._registration is not None:
            await asyncio.to_thread(self._registration.set_state, MemberState.DRAINING)
            await asyncio.sleep(_DRAIN_NOTICE_S)
        self._server.draining = True
        drain_s = self._config.life.drain_timeout_s
        if self._alluxio is None:
            await self._data.close(drain_s)
            return
        self._alluxio.drain()
        await asyncio.gather(self._data.close(drain_s), self._alluxio.close(drain_s))

    async def _conflict_loop(self, registration: Registration) -> None:
        """A copied page directory has another worker's identity: the newcomer ends, and says who serves."""
        while registration.conflict is None:
            await asyncio.sleep(_CONFLICT_EVERY_S)
        self.stop()

    async def _expire_loop(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._long_lived.grown(self._pages.stats().pages)
            self._loads.owner.forget_idle()
            await self._guests.sweep()
            await self._cache.run_on_disk(self._loads.rules.expire, time.time_ns())
            ttl_s = {mount.name: mount.ttl_s for mount in self._stores.mounts if mount.ttl_s}
            if ttl_s:
                await self._cache.run_on_disk(self._pages.expire, ttl_s, time.time_ns())

    async def _idle_loop(self, limit_s: float) -> None:
        while True:
            await asyncio.sleep(min(limit_s / 4, 30.0))
            if not self._cache.loading and time.monotonic() - self._server.last_request > limit_s:
                log.info("nothing asked for in %s s", limit_s)
                self.stop()
