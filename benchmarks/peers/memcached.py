"""memcached: values in the memory of one process, read by pymemcache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Peer, Served
from benchmarks.peers.values import counter, key_of, put_all
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
    return counter(port, b"stats\r\n", b"STAT get_misses ", b"END\r\n")


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
        get, put = self._client.get, self._client.set
        put_all(self._file, length, places, get, lambda key, value: put(key, value, noreply=False))

    def read(self, length: int, start: int) -> bytes:
        value: bytes = self._client.get(key_of(length, start))
        return value
