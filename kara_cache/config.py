"""The client's configuration, and what the worker's shares with it. `layered` says how values are read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kara_cache.endpoint import Endpoint
from kara_cache.errors import ConfigError
from kara_cache.layered import layered
from kara_cache.secret_ref import Secret

FILE_VARIABLE = "KARA_CONFIG"  # names the TOML file where no argument does
SYSTEM_CA = "system"
DEFAULT_CLUSTER_NAME = "kara"
DEFAULT_WORKER_PORT = 28080
DEFAULT_ETCD_PORT = 2379


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The client's side of TLS, off while nothing is set. Paths of PEM files; a key stays in its file."""

    ca: str = ""  # whom to trust; "system" for what the machine trusts
    cert: str = ""  # our certificate, where the other side asks for one (mTLS)
    key: str = ""  # its private key
    verify_hostname: bool = True  # off only where certificates carry no usable name, e.g. pods by IP

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ConfigError("TLS: cert and key belong together, one of them is missing")
        if self.cert and not self.ca:
            raise ConfigError('TLS: cert is set without ca; set ca to a file, or to "system"')

    @property
    def enabled(self) -> bool:
        return bool(self.ca)


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Where membership is kept. Without hosts there is no etcd."""

    hosts: tuple[str, ...] = ()  # "h1,h2:2379": all members, so that the loss of one is no loss
    port: int = DEFAULT_ETCD_PORT  # of hosts given without one
    username: str = ""  # etcd authentication is off in most installations
    password: Secret | None = None
    tls: TlsConfig = TlsConfig()

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"etcd_port: want 1 .. 65535, got {self.port}")
        if bool(self.username) != (self.password is not None):
            raise ConfigError("etcd_username and etcd_password belong together, one of them is missing")
        Endpoint.parse_all(self.hosts, self.port)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return Endpoint.parse_all(self.hosts, self.port)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What a client needs to know. With neither etcd nor worker_hosts it starts one private worker.

    `load` reads it from all layers; the keys of groups are `etcd_hosts`, `etcd_tls_ca`, `tls_ca` and so on.
    """

    cluster_name: str = DEFAULT_CLUSTER_NAME  # several clusters may share one etcd
    etcd: EtcdConfig = EtcdConfig()
    worker_hosts: tuple[str, ...] = ()  # "h:p,h:p": a fixed list of workers, in place of etcd
    token: Secret | None = None  # sent as it is; somebody else mints and renews it
    secret: Secret | None = None  # shared with the workers: the client mints short tokens itself
    tls: TlsConfig = TlsConfig()  # to workers
    timeout_s: float = (
        60.0  # one call with all its detours; beyond that training code hangs, it does not wait
    )
    stall_timeout_s: float = 3.0  # silence after which a worker is given up: three missed 1 s heartbeats
    connect_timeout_s: float = 1.0  # one lost SYN is sent again after 1 s; a rack is 1 ms away
    suspect_s: float = (
        5.0  # a failed worker is not asked first for so long: retries cost, and so does a cold page
    )
    connections_per_worker: int = 32  # idle ones kept open; threads of a loader, not a limit on work
    connection_idle_s: float = 30.0  # closed after this: below the 60 s at which load balancers cut silently
    read_ahead_bytes: int = 32 << 20  # most that a sequential reader fetches in advance; 10 ms at 25 Gbit/s
    local_reads: bool = True  # take page descriptors from a worker on this host: 1 us a read in place of 50
    state_dir: str = "~/.cache/kara"  # the last known members, for a start while etcd is away
    trace_reads: float = 0.0  # part of the reads that get an OpenTelemetry span: 0.01 is one of a hundred
    trace_slow_s: float | None = None  # reads that took so long or longer get one in any case

    def __post_init__(self) -> None:
        check_cluster_name(self.cluster_name)
        Endpoint.parse_all(self.worker_hosts, DEFAULT_WORKER_PORT)
        if self.worker_hosts and self.etcd.hosts:
            raise ConfigError(
                "worker_hosts and etcd_hosts are both set: the members come from one place only"
            )
        if self.token is not None and self.secret is not None:
            raise ConfigError("token and secret are both set: a client sends a token or mints its own")
        for key in ("timeout_s", "stall_timeout_s", "connect_timeout_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key}: want more than 0, got {getattr(self, key)}")
        if not 0 <= self.trace_reads <= 1:
            raise ConfigError(f"trace_reads: want 0 .. 1, got {self.trace_reads}")
        if self.trace_slow_s is not None and not self.trace_slow_s >= 0:
            raise ConfigError(f"trace_slow_s: want 0 or more, got {self.trace_slow_s}")
        if self.connections_per_worker < 1:
            raise ConfigError(f"connections_per_worker: want at least 1, got {self.connections_per_worker}")

    @classmethod
    def load(
        cls,
        *,
        file: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> ClientConfig:
        """Defaults < [client] of the file (or of KARA_CONFIG) < KARA_... < `overrides`, by flat key.

        Raises ConfigError; `overrides` that are None count as not given.
        """
        variables = os.environ if env is None else env
        return layered(
            cls,
            file=file or variables.get(FILE_VARIABLE) or None,
            section="client",
            other_sections=("worker", "mounts"),
            env=variables,
            overrides=overrides,
        )

    @property
    def worker_endpoints(self) -> tuple[Endpoint, ...]:
        return Endpoint.parse_all(self.worker_hosts, DEFAULT_WORKER_PORT)

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir).expanduser()


def check_cluster_name(name: str) -> None:
    """It is part of etcd keys and file names. Raises ConfigError."""
    if not 0 < len(name) <= 100 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise ConfigError(f"cluster_name: want 1 to 100 letters, digits, '.', '_' or '-', got {name!r}")


def runtime_dir(env: Mapping[str, str], uid: int) -> Path:
    """Where this user's sockets are: gone after a restart, and the worker closes it to other users."""
    base = env.get("XDG_RUNTIME_DIR")
    return Path(base) / "kara" if base else Path(tempfile.gettempdir()) / f"kara-{uid}"


__all__ = [
    "DEFAULT_CLUSTER_NAME",
    "DEFAULT_ETCD_PORT",
    "DEFAULT_WORKER_PORT",
    "FILE_VARIABLE",
    "SYSTEM_CA",
    "ClientConfig",
    "EtcdConfig",
    "TlsConfig",
    "check_cluster_name",
    "runtime_dir",
]
