"""Pages that are on SSD and not in memory: the worker against nginx, whose threads read its files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loader import Loader
from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.rounds import Rounds, interleave, process_cpu_s
from benchmarks.scene import MIB, Scene, warm
from benchmarks.servers import Server, nginx
from benchmarks.table_row import Row, Target

CONNECTIONS = 16
_FILES = 768
_TINY = 24
_ROUNDS = 5
_SETTLED_S = 0.5  # a worker believes for 0.25 s that a page is in memory when it was
_PART = 0.7  # of the time that a pass takes: so long others are measured beside it


@dataclass(frozen=True)
class _Side:
    """A server, what it is asked for, and where the bytes lie that it sends."""

    server: Server
    targets: list[str]
    place: Path
    probe: list[str]  # what somebody else asks it for meanwhile, in memory


def run(scene: Scene) -> list[Row]:
    names = _files(scene)
    home = scene.home / "disk"
    try:
        with on_cores(SERVER_CORES), nginx(scene.files, home, threads=True) as server, scene.also(server.pid):
            with scene.client() as client:
                warm(client, [f"/near/{name}" for name in names])
                small = scene.names["4KiB"][0]
                warm(client, [f"/near/{small}"])
                targets, probe = scene.targets(client, names), scene.targets(client, [small])
                ours = _Side(_worker(scene), targets, scene.worker.page_dir, probe)
            theirs = _Side(server, [f"/{name}" for name in names], scene.files / "disk", [f"/{small}"])
            os.sync()  # what is not written yet stays in memory
            with scene.clients_pinned():
                rounds = _passes(scene, ours, theirs)
                beside = _beside(scene, {"worker": ours, "nginx": theirs}, rounds.median("worker", "seconds"))
            with scene.client() as client:
                client.free("/near/disk", recursive=True)
    finally:
        shutil.rmtree(scene.files / "disk", ignore_errors=True)
    return [*_throughput(rounds, len(names)), beside]


def _files(scene: Scene) -> list[str]:
    root, source = scene.files / "disk", random.Random("disk")
    root.mkdir()
    names = [f"disk/{number}.bin" for number in range(_TINY if scene.settings.tiny else _FILES)]
    for name in names:
        (scene.files / name).write_bytes(source.randbytes(MIB))
    return names


def _worker(scene: Scene) -> Server:
    return Server(scene.worker.pid, scene.worker.port)


def _passes(scene: Scene, ours: _Side, theirs: _Side) -> Rounds:
    """Every file once, by 16 connections, from the disk; ours once more, from memory."""

    def cold(side: _Side) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            _forget(side.place)
            return _pass(scene.loader, side)

        return once

    variants = {"worker": cold(ours), "memory": lambda: _pass(scene.loader, ours), "nginx": cold(theirs)}
    # in this order: "memory" is what "worker" has just brought there
    return interleave(variants, min(_ROUNDS, scene.settings.rounds), scene.meter, in_order=True)


def _pass(loader: Loader, side: _Side) -> dict[str, float]:
    read, cpu = _read_bytes(side.server.pid), process_cpu_s(side.server.pid)
    found = loader.once(side.server.port, side.targets, connections=CONNECTIONS)
    return {
        "gb_s": found["bytes"] / found["seconds"] / 1e9,
        "seconds": found["seconds"],
        "cpu_us": (process_cpu_s(side.server.pid) - cpu) * 1e6 / found["requests"],
        "from_disk": (_read_bytes(side.server.pid) - read) / found["bytes"],
    }


def _throughput(rounds: Rounds, files: int) -> Iterator[Row]:
    names = {"worker": "worker", "nginx": "nginx", "memory": "worker, pages in memory"}
    detail = {
        f"{title}, {unit}": rounds.median(variant, metric)
        for variant, title in names.items()
        for unit, metric in (("GB/s", "gb_s"), ("CPU us/req", "cpu_us"))
    }
    what = f"{files} pages of 1 MiB from disk, {CONNECTIONS} connections: worker / nginx with aio threads"
    yield Row(
        "disk_pages",
        f"{what}, throughput",
        rounds.ratios("worker", "nginx", "gb_s"),
        Target(1.0),
        detail=detail,
    ).of(rounds)
    for variant, title, target in (
        ("worker", "the worker", Target(0.95)),
        ("nginx", "nginx", Target(0.95)),
        ("memory", "the worker, at once again,", Target(0.05, at_least=False)),
    ):
        yield Row(
            f"control_disk_{variant}",
            f"control: bytes that {title} had from the disk / bytes that it sent",
            rounds.of(variant, "from_disk"),
            target,
        )


def _beside(scene: Scene, sides: Mapping[str, _Side], pass_s: float) -> Row:
    """What another reader, of a page in memory, sees of it: the same load from disk and from memory."""
    seconds = max(0.05, _PART * pass_s)
    other = Loader(scene.home / "probe")

    def variant(side: _Side, *, cold: bool) -> Callable[[], dict[str, float]]:
        port, loader = side.server.port, scene.loader

        def load() -> dict[str, float]:
            if cold:
                return loader.once(port, side.targets, connections=CONNECTIONS)
            return loader.run(port, side.targets, connections=CONNECTIONS, seconds=seconds / _PART)

        def once() -> dict[str, float]:
            if cold:
                _forget(side.place)
            with ThreadPoolExecutor(1) as threads:
                loading = threads.submit(load)
                found = other.run(port, side.probe, connections=1, seconds=seconds)
                loading.result()
            return {"p50_us": found["p50_us"], "p99_us": found["p99_us"]}

        return once

    variants = {
        f"{name}, {place}": variant(side, cold=place == "disk")
        for name, side in sides.items()
        for place in ("disk", "memory")  # in this order: the second is what the first has brought there
    }
    rounds = interleave(variants, min(_ROUNDS, scene.settings.rounds), scene.meter, in_order=True)
    detail = {f"{name}, {m}": rounds.median(name, m) for name in variants for m in ("p50_us", "p99_us")}
    nginx_too = rounds.ratios("nginx, disk", "nginx, memory", "p99_us")
    return Row(
        "disk_p99",
        "p99 of a 4 KiB read of a page in memory while others read 1 MiB pages from disk / from memory",
        rounds.ratios("worker, disk", "worker, memory", "p99_us"),
        Target(1.1, at_least=False),
        detail=detail | {"the same of nginx": statistics.median(nginx_too)},
    ).of(rounds)


def _forget(place: Path) -> None:
    """The kernel's copies of what lies there."""
    for path in place.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
    time.sleep(_SETTLED_S)


def _read_bytes(pid: int) -> int:
    """What the process, and its threads, had the kernel read from a disk."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "read_bytes":
            return int(value)
    return 0
