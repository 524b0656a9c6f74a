"""One to a thousand connections: what an idle one costs in memory, and what they do to throughput."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence

from benchmarks.memory import resident_bytes
from benchmarks.rounds import interleave
from benchmarks.scene import Scene, warm
from benchmarks.table_row import Row, Target

_COUNTS = (1, 4, 16, 64, 256, 1000)
_TINY = (1, 64)
_IDLE = 1000
_ROUNDS = 5


def run(scene: Scene) -> list[Row]:
    names = scene.names["4KiB"]
    counts = _TINY if scene.settings.tiny else _COUNTS
    with scene.client() as client, scene.clients_pinned():
        warm(client, [f"/near/{name}" for name in names])
        targets = scene.targets(client, names)
    theirs = [f"/{name}" for name in names]
    with scene.clients_pinned():
        return [
            *_idle(scene, "worker", scene.worker.pid, scene.worker.port, targets[0]),
            *_idle(scene, "nginx", scene.nginx.pid, scene.nginx.port, theirs[0]),
            *_throughput(scene, counts, targets, theirs),
        ]


def _idle(scene: Scene, name: str, pid: int, port: int, target: str) -> list[Row]:
    """Each connection has asked once and waits, as a client's pool does."""
    count = 100 if scene.settings.tiny else _IDLE
    request = f"GET {target} HTTP/1.1\r\nHost: b\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        _ask(stack.enter_context(_connected(port)), request)  # what the first one brings is not counted
        before = resident_bytes(pid)
        for _ in range(count):
            _ask(stack.enter_context(_connected(port)), request)
        each = (resident_bytes(pid) - before) / count / 1024
    target_of = Target(64, "KiB", at_least=False) if name == "worker" else None
    what = f"{name}: memory of each of {count:,} idle connections"
    return [Row(f"growth_connections_idle_{name}", what, [each], target_of, "KiB")]


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _ask(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    answer = b""
    while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + 4096:
        piece = sock.recv(1 << 16)
        if not piece:
            raise ConnectionError(f"closed after {answer[:200]!r}")
        answer += piece


def _throughput(scene: Scene, counts: Sequence[int], ours: list[str], theirs: list[str]) -> list[Row]:
    def variant(port: int, targets: list[str], connections: int) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            seconds = max(0.1, scene.settings.seconds / 2)
            found = scene.loader.run(port, targets, connections=connections, seconds=seconds)
            return {"rate": found["requests"] / found["seconds"], "p99_us": found["p99_us"]}

        return once

    ports = {"worker": (scene.worker.port, ours), "nginx": (scene.nginx.port, theirs)}
    variants = {
        f"{name} {count}": variant(port, targets, count)
        for count in counts
        for name, (port, targets) in ports.items()
    }
    rounds = interleave(variants, min(_ROUNDS, scene.settings.rounds), scene.meter)
    series = {
        name: [(float(count), rounds.median(f"{name} {count}", "rate")) for count in counts] for name in ports
    }
    most, usual = counts[-1], counts[len(counts) // 2 - 1]
    return [
        Row(
            "growth_connections_rate",
            f"4 KiB files, req/s with {most:,} connections / with {usual}",
            rounds.ratios(f"worker {most}", f"worker {usual}", "rate"),
            None,
            detail={f"{key} req/s": rounds.median(key, "rate") for key in variants}
            | {f"{key} p99 us": rounds.median(key, "p99_us") for key in variants},
            plot=("4 KiB files, requests a second", "connections"),
            series=series,
        ).of(rounds)
    ]
