"""Varnish in front of the same store: whole objects in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Peer, Served
from benchmarks.servers import free_port, running, which

if TYPE_CHECKING:
    from benchmarks.scene import Scene


@contextlib.contextmanager
def _serve(scene: Scene) -> Iterator[Served]:
    port, home = free_port(), scene.home / "varnish"
    home.mkdir(exist_ok=True)
    command = [str(which("varnishd")), "-F", "-j", "none", "-n", str(home), "-a", f"127.0.0.1:{port}"]
    command += ["-b", f"127.0.0.1:{scene.nginx.port}", "-s", "malloc,2g", "-t", "86400"]
    # one acceptor and one pool for one core; timeouts that no idle connection of a pause meets
    command += ["-p", "thread_pools=1", "-p", "timeout_idle=600"]
    with on_cores(SERVER_CORES), running(command, port, log=home / "log", within_s=60) as server:
        yield Served({"port": port}, (server.pid,), scene.nginx.requests)


PEER = Peer(
    "Varnish 7", "varnish", __name__, "2 GiB of memory, one thread pool, the built-in VCL", _serve,
    programs={"varnishd": "varnish"},
)  # fmt: skip
