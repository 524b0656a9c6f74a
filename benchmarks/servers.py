"""The peers and stores: nginx over a directory, and a store that is far away."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_NGINX = """
daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  sendfile on; tcp_nopush on; tcp_nodelay on;
  {threads} keepalive_requests 100000000; keepalive_timeout 600s; open_file_cache max=4096 inactive=600s;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  log_format size '$body_bytes_sent';
  server {{
    listen 127.0.0.1:{port}; root {root}; autoindex on; access_log {log};
    location = /requests {{ stub_status; access_log off; }}
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    pid: int
    port: int
    _own: list[int] = field(default_factory=lambda: [0], repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> int:
        """How many nginx has answered, but for those of this method."""
        with urllib.request.urlopen(f"{self.url}/requests", timeout=10) as answer:
            counts = answer.read().decode().splitlines()[2].split()
        self._own[0] += 1
        return int(counts[2]) - self._own[0]


@contextlib.contextmanager
def nginx(root: Path, home: Path, *, log: Path | None = None, threads: bool = False) -> Iterator[Server]:
    """One process, sendfile, an open-file cache, no access log: nginx at its fastest for static files.

    `log` gets a line for each answer: the bytes of its body. `threads` read what is not in memory.
    """
    port = free_port()
    written = f"{log} size" if log is not None else "off"
    waiting = "aio threads;" if threads else ""
    text = _NGINX.format(home=home, root=root, port=port, log=written, threads=waiting)
    with nginx_with(text, home, port) as server:
        yield server


@contextlib.contextmanager
def nginx_with(configuration: str, home: Path, port: int) -> Iterator[Server]:
    program = which("nginx")
    if program is None:
        raise SystemExit("nginx is needed: apt-get install nginx")
    home.mkdir(parents=True, exist_ok=True)
    config = home / "nginx.conf"
    config.write_text(configuration)
    with running([program, "-c", str(config), "-e", str(home / "error.log")], port) as server:
        yield server


def which(program: str) -> str | None:
    """Daemons are in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")


@contextlib.contextmanager
def distant_store(root: Path, *, first_byte_s: float, bytes_per_s: int) -> Iterator[Server]:
    """The same files behind `benchmarks.distant_store`, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.distant_store", str(root), str(port)]
    with running([*command, str(first_byte_s), str(bytes_per_s)], port) as server:
        yield server


@contextlib.contextmanager
def distant_worker(worker_port: int, round_trip_s: float, bytes_per_s: int) -> Iterator[Server]:
    """The worker on another port of this host, as from far away."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.distant_worker", str(port), str(worker_port)]
    with running([*command, str(round_trip_s), str(bytes_per_s)], port) as server:
        yield server


@contextlib.contextmanager
def running(
    command: list[str], port: int, *, log: Path | None = None, within_s: float = 10.0, grace_s: float = 5.0
) -> Iterator[Server]:
    """A server that listens on `port` of this host. RuntimeError with the end of its log when it does not.

    `grace_s`: it may take so long to stop; nothing that these servers have is kept.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log is not None else None
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            _wait(process, port, log, within_s)
            yield Server(process.pid, port)
        finally:
            _stop(process, grace_s)


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path | None, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not _accepts(port):
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-500:] if log is not None else ""
            raise RuntimeError(f"{process.args!r} does not listen on port {port} in {within_s:.0f} s: {said}")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
