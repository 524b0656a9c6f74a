"""The worker against nginx: the same bytes, 16 connections, warm, one core each."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.rounds import interleave, process_cpu_s
from benchmarks.scene import KIB, SIZES, Scene, read_url, warm
from benchmarks.table_row import Row, Target

CONNECTIONS = 16
_PARTS = 512  # ranges of 4 KiB, spread over the pages of one file
_AT_LEAST = Target(0.9)


def run(scene: Scene) -> list[Row]:
    with scene.clients_pinned():
        rows = [_whole_files(scene, size) for size in SIZES]
        return [*rows, _parts_of_pages(scene)]


def _whole_files(scene: Scene, size: str) -> Row:
    """Every request is for a whole file: of pages, sent by sendfile under the sums of their fill."""
    names = scene.names[size]
    with scene.client() as client:
        warm(client, [f"/near/{name}" for name in names])
        targets = scene.targets(client, names)
    return _row(
        scene, size, f"worker / nginx static sendfile, {size} files, req/s", targets, [f"/{n}" for n in names]
    )


def _parts_of_pages(scene: Scene) -> Row:
    """4 KiB from the middle of pages, which the worker reads and verifies; nginx serves whole 4 KiB files."""
    name = scene.names["big"][0]
    with scene.client() as client:
        warm(client, [f"/near/{name}"])
        info = client.info(f"/near/{name}")
    step = info.size // _PARTS
    prefix = f"http://{scene.worker.address}"
    targets = [
        read_url(scene.worker, info, at * step + 512, 4 * KIB).removeprefix(prefix) for at in range(_PARTS)
    ]
    what = "worker, verified 4 KiB parts of 1 MiB pages / nginx 4 KiB files, req/s"
    return _row(scene, "parts", what, targets, [f"/{n}" for n in scene.names["4KiB"]], target=None)


def _row(
    scene: Scene, key: str, what: str, ours: list[str], theirs: list[str], target: Target | None = _AT_LEAST
) -> Row:
    rounds = interleave(
        {
            "worker": _loaded(scene, scene.worker.pid, scene.worker.port, ours),
            "nginx": _loaded(scene, scene.nginx.pid, scene.nginx.port, theirs),
        },
        scene.settings.rounds,
        scene.meter,
    )
    detail = {
        f"{variant} {name}": rounds.median(variant, metric)
        for variant in ("worker", "nginx")
        for name, metric in (
            ("req/s", "rate"), ("GB/s", "gb_s"), ("CPU us/req", "cpu_us"), ("p50 us", "p50_us"),
            ("p99 us", "p99_us"), ("loader busy", "loader_busy"),
        )
    }  # fmt: skip
    if theirs_us := rounds.median("nginx", "cpu_us"):
        detail["CPU us/req, worker / nginx"] = rounds.median("worker", "cpu_us") / theirs_us
    return Row(f"worker_{key}", what, rounds.ratios("worker", "nginx", "rate"), target, detail=detail).of(
        rounds
    )


def _loaded(scene: Scene, pid: int, port: int, targets: list[str]) -> Callable[[], dict[str, float]]:
    def once() -> dict[str, float]:
        before = process_cpu_s(pid)
        found = scene.loader.run(port, targets, connections=CONNECTIONS, seconds=scene.settings.seconds)
        cpu = process_cpu_s(pid) - before
        return {
            "rate": found["requests"] / found["seconds"],
            "gb_s": found["bytes"] / found["seconds"] / 1e9,
            "cpu_us": cpu * 1e6 / max(1.0, found["requests"]),
            "p50_us": found["p50_us"],
            "p99_us": found["p99_us"],
            "loader_busy": found["cpu_s"] / found["seconds"],
        }

    return once
