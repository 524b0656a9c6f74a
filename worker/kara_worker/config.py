"""The worker's configuration: what it is, where it reads it from, and what it refuses to start with."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kara_cache.config import (
    DEFAULT_CLUSTER_NAME,
    DEFAULT_WORKER_PORT,
    FILE_VARIABLE,
    ClientConfig,
    EtcdConfig,
    check_cluster_name,
    runtime_dir,
)
from kara_cache.endpoint import Endpoint, is_loopback
from kara_cache.errors import ConfigError
from kara_cache.layered import INLINE, keys, layered
from kara_cache.mount import MountTable
from kara_cache.page import DEFAULT_PAGE_BYTES, HEADER_BYTES, MAX_PAGE_BYTES, MIN_PAGE_BYTES
from kara_cache.quantity import format_bytes
from kara_cache.secret_ref import Secret
from kara_cache.token import MIN_SECRET_BYTES
from kara_worker.alluxio_config import AlluxioConfig
from kara_worker.mount_settings import mounts_in, overlay
from kara_worker.page_dirs import Statvfs, check_capacity, check_page_dirs, disk_bytes
from kara_worker.tls import server_context

_MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its NUL
_SOCKET_NAME_BYTES = len("/.sock") + 32
_DEFAULT_CAPACITY_BYTES = 10 << 30
_PAGE_STORES = ("auto", "segments", "files")
_MIN_PAGES = 4


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """Where clients reach this worker."""

    host: str = "127.0.0.1"  # beyond loopback only with `secret` or `tls_client_ca`
    port: int = DEFAULT_WORKER_PORT  # 0 takes a free one
    advertise_host: str = ""  # what clients connect to, if not `host`: 0.0.0.0 is no address to give away
    socket_dir: str = (
        ""  # of the unix socket for clients of this host; default below the user's runtime directory
    )


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """Metrics and health, read-only, on a listener of their own so that the data port shows nothing."""

    host: str = "127.0.0.1"
    port: int = 28081  # 0 takes a free one
    anonymous: bool = False  # lets the host be reachable by others: a scraper has no token to show
    paths: bool = False  # the status page names files there too; on loopback it always does


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The pages on SSD."""

    page_dirs: tuple[str, ...] = ()  # "a,b": ours alone; one for each disk
    capacity_bytes: int = 0  # in all directories together; 0: 10 GiB, or half of a smaller disk
    page_bytes: int = DEFAULT_PAGE_BYTES  # power of two; smaller wastes headers, larger wastes reads
    page_store: str = "auto"  # "segments", many pages to a file, where the disk can; else "files"
    eviction: str = "s3fifo"  # the policy's name; one-off scans do not flush the rest
    guard: bool = True  # keeps a scan that is larger than the cache from evicting what it will read again
    high_watermark: float = 0.95  # of the capacity: here eviction begins
    low_watermark: float = 0.90  # and here it ends, off the request path
    sendfile_above_bytes: int | None = None  # smaller pages are copied; None: measured at start, 8 KiB mostly

    def __post_init__(self) -> None:
        size = self.page_bytes
        if not MIN_PAGE_BYTES <= size <= MAX_PAGE_BYTES or size & (size - 1):
            limits = f"{format_bytes(MIN_PAGE_BYTES)} .. {format_bytes(MAX_PAGE_BYTES)}"
            raise ConfigError(f"page_bytes: want a power of two, {limits}, got {format_bytes(size)} ({size})")
        least = _MIN_PAGES * (size + HEADER_BYTES)
        if self.capacity_bytes and self.capacity_bytes < least:
            raise ConfigError(
                f"capacity_bytes: want at least {_MIN_PAGES} pages, {least} bytes, got {self.capacity_bytes}"
            )
        if self.page_store not in _PAGE_STORES:
            raise ConfigError(f"page_store: want {', '.join(_PAGE_STORES)}, got {self.page_store!r}")
        if self.sendfile_above_bytes is not None and self.sendfile_above_bytes < 0:
            raise ConfigError(f"sendfile_above_bytes: want 0 or more, got {self.sendfile_above_bytes}")
        if not 0 < self.low_watermark < self.high_watermark <= 1:
            raise ConfigError(
                "watermarks: want 0 < low_watermark < high_watermark <= 1, "
                f"got {self.low_watermark} and {self.high_watermark}"
            )


@dataclass(frozen=True, slots=True)
class FillConfig:
    """Reading from the stores."""

    ufs_threads: int = (
        32  # reads from one mount's store at a time; a store answers in 10-100 ms, so few are too few
    )
    fill_memory_bytes: int = 512 << 20  # pages on their way from a store; beyond it fills wait
    write_queue_bytes: int = 256 << 20  # pages waiting for the disk; beyond it they are not kept, and counted

    def __post_init__(self) -> None:
        if self.ufs_threads < 1:
            raise ConfigError(f"ufs_threads: want at least 1, got {self.ufs_threads}")


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """What load jobs may take of this worker; readers come before them."""

    load_threads: int = 16  # store requests of load jobs at the same time, beside `ufs_threads`
    load_memory_bytes: int = 128 << 20  # their pages on the way from a store to the disk
    load_nice: int = 10  # priority of the process that fetches, below the worker's own (nice)
    load_bandwidth_bytes_per_s: int | None = None  # from the stores, for all load jobs together
    load_requests_per_s: float | None = None  # to the stores, for all load jobs together

    def __post_init__(self) -> None:
        if self.load_threads < 1:
            raise ConfigError(f"load_threads: want at least 1, got {self.load_threads}")
        if not 0 <= self.load_nice <= 19:
            raise ConfigError(f"load_nice: want 0 to 19, got {self.load_nice}")
        if self.load_bandwidth_bytes_per_s is not None and self.load_bandwidth_bytes_per_s < 1:
            got = self.load_bandwidth_bytes_per_s
            raise ConfigError(f"load_bandwidth_bytes_per_s: want at least 1, got {got}")
        if self.load_requests_per_s is not None and not self.load_requests_per_s > 0:
            raise ConfigError(f"load_requests_per_s: want more than 0, got {self.load_requests_per_s}")


@dataclass(frozen=True, slots=True)
class LifeConfig:
    """Coming and going."""

    drain_timeout_s: float = 30.0  # running requests may take so long at the end; Kubernetes' own default
    lease_ttl_s: float = 15.0  # a dead worker is noticed after this; three beats fit in
    passive_grace_s: float = 600.0  # a lost worker keeps its place: longer than a restart of its node
    idle_exit_s: float | None = None  # ends after so long without a request; for private workers

    def __post_init__(self) -> None:
        if self.lease_ttl_s < 1:
            raise ConfigError(f"lease_ttl_s: want at least 1, etcd counts in seconds, got {self.lease_ttl_s}")
        if self.idle_exit_s is not None and not self.idle_exit_s > 0:
            raise ConfigError(f"idle_exit_s: want more than 0, got {self.idle_exit_s}")


@dataclass(frozen=True, slots=True)
class HandoverConfig:
    """What a worker that stops gives to those that are asked in its place; only where etcd is."""

    handover_bytes: int = 8 << 30  # of the files read last; 0: nothing. A few seconds of 10 Gbit/s
    handover_timeout_s: float = 20.0  # for all of it, before the drain begins
    handover_bandwidth_bytes_per_s: int | None = None  # out of this worker, beside what readers get

    def __post_init__(self) -> None:
        if self.handover_timeout_s < 0:
            raise ConfigError(f"handover_timeout_s: want 0 or more, got {self.handover_timeout_s}")
        if self.handover_bandwidth_bytes_per_s is not None and self.handover_bandwidth_bytes_per_s < 1:
            got = self.handover_bandwidth_bytes_per_s
            raise ConfigError(f"handover_bandwidth_bytes_per_s: want at least 1, got {got}")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS on the data port, off without a certificate. Paths of PEM files."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""  # clients must show a certificate of this authority (mTLS)
    peer_ca: str = ""  # whose certificates other workers have; default client_ca, else what the system trusts

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ConfigError("tls_cert and tls_key belong together, one of them is missing")
        if self.client_ca and not self.cert:
            raise ConfigError("tls_client_ca is set without tls_cert and tls_key: there is no TLS to ask in")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What one `kara-worker` runs on. Its keys are flat: `port`, `page_dirs`, `etcd_hosts`, `tls_cert`."""

    cluster_name: str = DEFAULT_CLUSTER_NAME
    etcd: EtcdConfig = field(default_factory=EtcdConfig)  # no hosts: serves unregistered, for a static list
    worker_hosts: tuple[str, ...] = ()  # all workers, as clients have them; etcd counts first
    listen: ListenConfig = field(default_factory=ListenConfig, metadata=INLINE)
    admin: AdminConfig = field(default_factory=AdminConfig)
    store: StoreConfig = field(default_factory=StoreConfig, metadata=INLINE)
    fill: FillConfig = field(default_factory=FillConfig, metadata=INLINE)
    loads: LoadConfig = field(default_factory=LoadConfig, metadata=INLINE)
    life: LifeConfig = field(default_factory=LifeConfig, metadata=INLINE)
    handover: HandoverConfig = field(default_factory=HandoverConfig, metadata=INLINE)
    secret: Secret | None = None  # shared with clients; tokens are checked as soon as it is set
    tls: ServerTls = field(default_factory=ServerTls)
    alluxio: AlluxioConfig = field(default_factory=AlluxioConfig)
    mounts: MountTable = field(default_factory=MountTable)
    trace: bool = False  # OpenTelemetry spans of requests that bring a trace context, to OTEL_EXPORTER_OTLP_*
    private: bool = False  # one user's own worker: unix socket only, takes mounts from its user
    workers: int = 1  # processes to start; each has its own directory, ports and place in the table

    def __post_init__(self) -> None:
        check_cluster_name(self.cluster_name)
        for key, port in (("port", self.listen.port), ("admin_port", self.admin.port)):
            if not 0 <= port < 65536:
                raise ConfigError(f"{key}: want 0 .. 65535, got {port}")
        if not 1 <= self.workers <= 256:
            raise ConfigError(f"workers: want 1 .. 256, got {self.workers}")
        Endpoint.parse_all(self.worker_hosts, DEFAULT_WORKER_PORT)
        if self.private:
            if self.etcd.hosts or self.workers > 1:
                raise ConfigError(
                    "private: a private worker is one and in no cluster; leave out etcd_hosts and workers"
                )
            if self.alluxio.enabled:
                raise ConfigError("private: a private worker has no Alluxio listeners, leave out their ports")
            return
        self.alluxio.check_access(tokens=self.secret is not None, mutual_tls=bool(self.tls.client_ca))
        if not is_loopback(self.listen.host) and self.secret is None and not self.tls.client_ca:
            raise ConfigError(
                f"host {self.listen.host!r}: reachable by others without authentication; set secret "
                "(KARA_SECRET=file:/path or env:NAME), or tls_cert, tls_key and tls_client_ca, "
                "or host 127.0.0.1"
            )
        if not is_loopback(self.admin.host) and not self.admin.anonymous:
            raise ConfigError(
                f"admin_host {self.admin.host!r}: reachable by others, and metrics ask for no token; "
                "set admin_anonymous = true (KARA_ADMIN_ANONYMOUS=1) to allow it, or admin_host 127.0.0.1"
            )

    @property
    def worker_endpoints(self) -> tuple[Endpoint, ...]:
        return Endpoint.parse_all(self.worker_hosts, DEFAULT_WORKER_PORT)

    @classmethod
    def load(
        cls,
        *,
        file: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        statvfs: Statvfs = os.statvfs,
        flags: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> WorkerConfig:
        """Defaults < [worker] and [mounts.NAME] of the file (or of KARA_CONFIG) < KARA_... < `overrides`.

        Mounts of all layers add up; of one name the later layer's counts. The result is settled (paths
        absolute, capacity and socket directory known) and checked. Raises ConfigError.
        """
        variables = os.environ if env is None else env
        path = file or variables.get(FILE_VARIABLE) or None
        config = layered(
            cls,
            file=path,
            section="worker",
            other_sections=("client", "mounts"),
            env=variables,
            other_keys=keys(ClientConfig),
            overrides=overrides,
            flags=flags,
        )
        if path is not None:
            config = replace(config, mounts=overlay(mounts_in(path), config.mounts))
        config = config.settled(variables, statvfs)
        config.check(statvfs)
        return config

    def settled(self, env: Mapping[str, str], statvfs: Statvfs = os.statvfs) -> WorkerConfig:
        """With absolute directories, and defaults that depend on this machine filled in."""
        dirs = tuple(os.path.abspath(os.path.expanduser(directory)) for directory in self.store.page_dirs)
        capacity = self.store.capacity_bytes
        if not capacity and dirs:
            capacity = min(_DEFAULT_CAPACITY_BYTES, disk_bytes(dirs, statvfs) // 2)
        sockets = self.listen.socket_dir or str(runtime_dir(env, os.getuid()))
        return replace(
            self,
            store=replace(self.store, page_dirs=dirs, capacity_bytes=capacity),
            listen=replace(self.listen, socket_dir=os.path.abspath(os.path.expanduser(sockets))),
        )

    def check(self, statvfs: Statvfs = os.statvfs) -> None:
        """What depends on this machine: directories, disk, readable secrets. Raises ConfigError."""
        check_page_dirs(self.store.page_dirs)
        check_capacity(self.store.page_dirs, self.store.capacity_bytes, statvfs)
        length = len(os.fsencode(self.listen.socket_dir)) + _SOCKET_NAME_BYTES
        if length > _MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"socket_dir {self.listen.socket_dir!r}: the socket's path would have {length} bytes, "
                f"the system allows {_MAX_SOCKET_PATH_BYTES}"
            )
        self.secrets()
        self.alluxio.keys()
        for key, path in (
            ("tls_cert", self.tls.cert),
            ("tls_key", self.tls.key),
            ("tls_client_ca", self.tls.client_ca),
            ("tls_peer_ca", self.tls.peer_ca),
        ):
            if path and not os.path.isfile(path):
                raise ConfigError(f"{key}: no file {path!r}")

    def secrets(self) -> tuple[bytes, ...]:
        """Secrets that tokens may be signed with, the current one first. Raises ConfigError."""
        if self.secret is None:
            return ()
        secrets = tuple(text.encode() for text in self.secret.reveal_all())
        for number, secret in enumerate(secrets, start=1):
            if len(secret) < MIN_SECRET_BYTES:
                raise ConfigError(
                    f"secret: number {number} of {len(secrets)} has {len(secret)} bytes, "
                    f"want at least {MIN_SECRET_BYTES}"
                )
        return secrets

    def server_tls(self) -> ssl.SSLContext | None:
        """None means plain TCP. Raises ConfigError for files that do not fit together."""
        return server_context(self.tls.cert, self.tls.key, self.tls.client_ca) if self.tls.cert else None

    def split(self) -> tuple[WorkerConfig, ...]:
        """One configuration for each of `workers`: own directories and ports, an equal part of the rest.

        With as many directories as workers each takes one, otherwise each takes `worker-<n>` in all of
        them. Ports other than 0 go up by two: the next pair is free where port and admin_port are neighbours.
        """
        if self.workers == 1:
            return (self,)
        dirs, parts = self.store.page_dirs, []
        for number in range(self.workers):
            own = (
                (dirs[number],) if len(dirs) == self.workers else tuple(f"{d}/worker-{number}" for d in dirs)
            )
            parts.append(
                replace(
                    self,
                    workers=1,
                    store=replace(
                        self.store, page_dirs=own, capacity_bytes=self.store.capacity_bytes // self.workers
                    ),
                    fill=replace(
                        self.fill,
                        fill_memory_bytes=self.fill.fill_memory_bytes // self.workers,
                        write_queue_bytes=self.fill.write_queue_bytes // self.workers,
                    ),
                    listen=replace(self.listen, port=self.listen.port and self.listen.port + 2 * number),
                    admin=replace(self.admin, port=self.admin.port and self.admin.port + 2 * number),
                    alluxio=self.alluxio.shifted(2 * number),
                )
            )
        return tuple(parts)
