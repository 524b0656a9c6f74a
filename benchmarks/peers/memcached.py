"""memcached: values in the memory of one process, read by pymemcache."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Peer, Served
from benchmarks.servers import free_port, running, which

if TYPE_CHECKING:
    from benchmarks.scene import Scene


@contextlib.contextmanager
def _serve(scene: Scene) -> Iterator[Served]:
    port = free_port()
    command = [str(which("memcached")), "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", "nobody"]
    command += ["-m", "1024", "-I", "4m", "-t", "1"]
    with on_cores(SERVER_CORES), running(command, port, log=scene.home / "memcached.log") as server:
        options = {"port": port, "file": str(scene.files / scene.names["big"][0])}
        yield Served(options, (server.pid,), lambda: _misses(port))


def _misses(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"stats\r\n")
        text = b""
        while not text.endswith(b"END\r\n"):
            text += sock.recv(1 << 16)
    return float(text.partition(b"STAT get_misses ")[2].split()[0])


PEER = Peer(
    "memcached 1.6, pymemcache",
    "memcached",
    __name__,
    "one thread, 1 GiB, items up to 4 MiB; get() of whole values",
    _serve,
    requirements=("pymemcache==4.0.0",),
    programs={"memcached": "memcached"},
    lengths=("4 KiB", "100 KiB", "1 MiB"),
)


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        from pymemcache.client.base import Client

        self._client = Client(("127.0.0.1", options["port"]), timeout=30, no_delay=True)
        self._file = options["file"]

    def prepare(self, length: int, places: list[int]) -> None:
        with open(self._file, "rb") as file:
            for start in places:
                file.seek(start)
                self._client.get(f"{length}:{start}")  # a miss, so that the counter is seen to move
                self._client.set(f"{length}:{start}", file.read(length), noreply=False)

    def read(self, length: int, start: int) -> bytes:
        value: bytes = self._client.get(f"{length}:{start}")
        return value
