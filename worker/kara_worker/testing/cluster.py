"""A real cluster in one command: worker processes, and etcd if asked for. For tests, demos and `kara up`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kara_worker.testing.etcd_server import EtcdServer

READY_TIMEOUT_S = 30.0
_PORTS = range(20000, 32768)


class WorkerProcess:
    """One `kara-worker`, its directory and where it listens. Restarting keeps directory and identity."""

    def __init__(self, directory: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.log_path = directory / "worker.log"
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        """Returns when the worker serves; RuntimeError with the end of its log when it does not."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kara_worker", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        line = self._first_line()
        if not line:
            self.kill()
            tail = self.log_path.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"worker in {self.directory} did not start:\n{tail}")
        self.ready = json.loads(line)

    def _first_line(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        out, line = self._process.stdout.fileno(), b""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(out, 4096) if readable else b""
            if not piece:
                return b""
            line += piece
        return line

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def id(self) -> str:
        return str(self.ready["id"])

    @property
    def port(self) -> int:
        return int(self.ready["port"])

    @property
    def admin_port(self) -> int:
        return int(self.ready["admin_port"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def page_dir(self) -> Path:
        return self.directory / "pages"

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        self._end(signal.SIGKILL, 10.0)

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM: drains. Returns the exit code."""
        return self._end(signal.SIGTERM, timeout_s)

    def wait(self, timeout_s: float) -> int:
        """Its exit code when it ends by itself; TimeoutError otherwise."""
        assert self._process is not None, "not started"
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise TimeoutError(f"worker {self.pid} still runs after {timeout_s} s") from exc
        self._end(signal.SIGTERM, 1.0)
        return code

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Starts again on the same directory, on other ports."""
        if self.alive:
            self.stop()
        self.start()

    def _end(self, number: int, timeout_s: float) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, number)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
        return code

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its full name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


class LocalCluster:
    """`workers` real worker processes on loopback, registered in etcd or given as a static list.

    mounts: name -> url, or name -> table of a mount as in the configuration file.
    settings: keys of the configuration file's [worker] table, for every worker.
    each: more of them, for the first worker, the second and so on.
    """

    def __init__(
        self,
        workers: int = 3,
        *,
        mounts: Mapping[str, str | Mapping[str, Any]],
        etcd: EtcdServer | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        each: Sequence[Mapping[str, Any]] = (),
        peers: bool = False,
        **settings: Any,
    ) -> None:
        """`peers`: without etcd, workers have fixed ports and know each other, as a static cluster should."""
        self._own_directory = tempfile.TemporaryDirectory(prefix="kara-") if directory is None else None
        self.directory = Path(self._own_directory.name) if self._own_directory else Path(str(directory))
        self._sockets = Path(tempfile.mkdtemp(prefix="kara-s-"))  # short: a path of a socket has 107 bytes
        self.etcd = etcd
        self.cluster_name = str(settings.setdefault("cluster_name", "local"))
        settings.setdefault("capacity_bytes", "1GiB")
        settings.setdefault("host", "127.0.0.1")
        settings.setdefault("port", 0)
        settings.setdefault("admin_port", 0)
        if etcd is not None:
            settings.setdefault("etcd_hosts", [f"{etcd.host}:{etcd.port}"])
        if peers:
            ports = free_ports(workers)
            settings["worker_hosts"] = [f"127.0.0.1:{port}" for port in ports]
            given = [*each, *({} for _ in range(workers - len(each)))]
            each = [{"port": port, **more} for port, more in zip(ports, given, strict=True)]
        self.workers: list[WorkerProcess] = []
        for number in range(workers):
            own = {**settings, **each[number]} if number < len(each) else settings
            self.workers.append(self._worker(number, mounts, own, environment or {}))

    def _worker(
        self,
        number: int,
        mounts: Mapping[str, str | Mapping[str, Any]],
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> WorkerProcess:
        home = self.directory / f"worker-{number}"
        home.mkdir(parents=True, exist_ok=True)
        sockets = str(self._sockets / str(number))
        table = {"page_dirs": [str(home / "pages")], "socket_dir": sockets, **settings}
        config = home / "worker.toml"
        config.write_text(_toml(table, mounts))
        return WorkerProcess(home, ["--config", str(config)], environment)

    def start(self) -> LocalCluster:
        try:
            for worker in self.workers:
                worker.start()
            if self.etcd is not None:
                self._wait_registered()
        except BaseException:
            self.close()
            raise
        return self

    def _wait_registered(self) -> None:
        """Workers serve before etcd knows them; who starts a client next wants to find them all."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        for worker in self.workers:
            while not worker.metrics().get("kara_worker_lease_held"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"worker {worker.id} did not register in etcd in {READY_TIMEOUT_S} s")
                time.sleep(0.02)

    @property
    def worker_hosts(self) -> str:
        return ",".join(worker.address for worker in self.workers if worker.alive)

    @property
    def client_options(self) -> dict[str, Any]:
        """Keywords for `CacheClient`'s configuration and for `fsspec.filesystem("kara", ...)`."""
        options: dict[str, Any] = {
            "cluster_name": self.cluster_name,
            "state_dir": str(self.directory / "client-state"),
        }
        if self.etcd is not None:
            return {**options, "etcd_hosts": f"{self.etcd.host}:{self.etcd.port}"}
        return {**options, "worker_hosts": self.worker_hosts}

    def worker(self, identity: str) -> WorkerProcess:
        """The worker of this id, or of this "host:port" in a static cluster."""
        for worker in self.workers:
            if identity in (worker.id, worker.address):
                return worker
        raise LookupError(f"no worker {identity!r}")

    def total(self, name: str) -> float:
        """A metric's value summed over workers and labels: `total("kara_worker_fills_total")`."""
        return sum(
            value
            for worker in self.workers
            if worker.alive
            for sample, value in worker.metrics().items()
            if sample == name or sample.startswith(name + "{")
        )

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._own_directory is not None:
            self._own_directory.cleanup()

    def __enter__(self) -> LocalCluster:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has now, below those that the kernel gives to outgoing connections."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe, port = stack.enter_context(socket.socket()), random.SystemRandom().choice(_PORTS)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def _toml(settings: Mapping[str, Any], mounts: Mapping[str, str | Mapping[str, Any]]) -> str:
    lines = ["[worker]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    for name, mount in mounts.items():
        table: dict[str, Any] = {"url": mount} if isinstance(mount, str) else dict(mount)
        options: dict[str, Any] = table.pop("options", {})
        lines += ["", f"[mounts.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        if options:
            lines += [f"[mounts.{name}.options]", *(f"{k} = {json.dumps(v)}" for k, v in options.items())]
    return "\n".join(lines) + "\n"
