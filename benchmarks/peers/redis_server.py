"""Redis: values in the memory of one process, read by redis-py with the parser in C."""

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
    port, home = free_port(), scene.home / "redis"
    home.mkdir(exist_ok=True)
    command = [str(which("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--appendonly", "no", "--dir", str(home)]
    with on_cores(SERVER_CORES):
        stack = running(command, port, log=home / "log")
        with stack as server:
            options = {"port": port, "file": str(scene.files / scene.names["big"][0])}
            yield Served(options, (server.pid,), lambda: _misses(port))


def _misses(port: int) -> float:
    return counter(port, b"INFO stats\r\n", b"keyspace_misses:", b"\r\n")


PEER = Peer(
    "Redis 7, redis-py",
    "redis",
    __name__,
    "one process, no persistence; get() of whole values by redis-py with hiredis",
    _serve,
    requirements=("redis==6.4.0", "hiredis"),
    programs={"redis-server": "redis-server"},
)


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        import redis

        self._client = redis.Redis(port=options["port"], socket_timeout=30)
        self._file = options["file"]

    def prepare(self, length: int, places: list[int]) -> None:
        put_all(self._file, length, places, self._client.get, self._client.set)

    def read(self, length: int, start: int) -> bytes:
        value: bytes = self._client.get(key_of(length, start))
        return value
