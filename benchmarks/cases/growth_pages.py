"""Does a read cost more when the worker has more pages? A thousand to a million of them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter, sleep

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.memory import resident_bytes
from benchmarks.page_maker import FOOTPRINT_BYTES, PAGE_BYTES, PAGE_STORE, path_of
from benchmarks.rounds import interleave, tree_cpu_s
from benchmarks.scene import MIB, Scene
from benchmarks.table_row import Row, Target
from kara_cache.wire import read_target
from kara_worker.testing.cluster import LocalCluster, WorkerProcess

_COUNTS = (1_000, 10_000, 100_000, 1_000_000)  # the first fits into what is kept open
_TINY = (500, 2_000, 6_000)
_ASKED = 10_000  # different pages that are read, of however many there are
_CONNECTIONS = 16
_ROUNDS = 5
_FILL_S = 240.0  # the next population is left out when it would take longer than this
_CALM_S = 0.05  # of processor time in half a second
_MOST_SETTLING_S = 60.0


def run(scene: Scene) -> list[Row]:
    with contextlib.ExitStack() as stack:
        workers: dict[int, WorkerProcess] = {}
        started: dict[int, float] = {}
        for count in _TINY if scene.settings.tiny else _COUNTS:
            home = scene.home / f"pages-{count}"
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            if not _fill(scene, home, count):
                break
            began = perf_counter()
            workers[count] = stack.enter_context(_worker(scene, home, count))
            started[count] = perf_counter() - began
            _settle(workers[count])
        if len(workers) < 3:
            return []
        stack.enter_context(scene.also(*(worker.pid for worker in workers.values())))
        stack.enter_context(scene.clients_pinned())
        return _measured(scene, workers, started)


_expected_s = [0.0]


def _fill(scene: Scene, home: Path, count: int) -> bool:
    """False, with the reason in the report, where this machine has no room or no time for it."""
    name = f"growth with pages, {count:,}"
    need, free = count * FOOTPRINT_BYTES * 1.3, shutil.disk_usage(scene.home).free
    if need > free * 0.8:
        scene.skipped[name] = f"needs {need / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free"
        return False
    if _expected_s[0] * count > _FILL_S:
        scene.skipped[name] = f"putting the pages there would take {_expected_s[0] * count:.0f} s here"
        return False
    began = perf_counter()
    command = [sys.executable, "-m", "benchmarks.page_maker", str(home / "worker-0" / "pages"), str(count)]
    subprocess.run(command, check=True, timeout=1800, cwd=Path(__file__).resolve().parents[2])
    _expected_s[0] = (perf_counter() - began) / count
    return True


@contextlib.contextmanager
def _worker(scene: Scene, home: Path, count: int):
    capacity = int(count * FOOTPRINT_BYTES * 1.5) + 1024 * MIB
    cluster = LocalCluster(
        1,
        mounts={"near": {"url": scene.nginx.url, "freshness": "immutable"}},
        directory=home,
        capacity_bytes=capacity,
        page_store=PAGE_STORE,
    )
    with on_cores(SERVER_CORES), cluster:
        yield cluster.workers[0]


def _settle(worker: WorkerProcess) -> None:
    """It serves at once and tells the eviction policy of all pages meanwhile: reads are measured later."""
    calm, deadline = 0, perf_counter() + _MOST_SETTLING_S
    while calm < 3 and perf_counter() < deadline:
        before = tree_cpu_s(worker.pid)
        sleep(0.5)
        calm = calm + 1 if tree_cpu_s(worker.pid) - before < _CALM_S else 0


def _measured(scene: Scene, workers: dict[int, WorkerProcess], started: dict[int, float]) -> list[Row]:
    counts = list(workers)
    variants = {str(count): _loaded(scene, worker, count) for count, worker in workers.items()}
    fetched = scene.nginx.requests()
    for once in variants.values():
        once()  # what has to be opened is open, and what has to be listed is listed
    rounds = interleave(variants, min(_ROUNDS, scene.settings.rounds), scene.meter)
    asked = scene.nginx.requests() - fetched
    rows = []
    few, many = str(counts[1]), str(counts[-1])
    for key, metric, title in (
        ("time", "us", "us a read"),
        ("cpu", "cpu_us", "us of the worker's CPU a read"),
    ):
        points = [(float(count), rounds.median(str(count), metric)) for count in counts]
        rows.append(
            Row(
                f"growth_pages_{key}",
                f"read of one of {int(many):,} pages / of {int(few):,} pages, {title}",
                rounds.ratios(many, few, metric),
                Target(1.2, at_least=False) if key == "time" else None,
                detail={f"{count:,} pages, {title}": value for count, value in points},
                plot=(f"{title}, {_CONNECTIONS} connections", "pages in the store"),
                series={"worker": points},
            ).of(rounds)
        )
    memory = {count: float(resident_bytes(worker.pid)) for count, worker in workers.items()}
    each = (memory[counts[-1]] - memory[counts[1]]) / (counts[-1] - counts[1])
    return [
        *rows,
        Row(
            "growth_pages_memory",
            f"memory of the worker for each page, {int(few):,} to {int(many):,} pages",
            [each],
            None,
            "bytes",
            {f"{count:,} pages, resident MB": value / 1e6 for count, value in memory.items()},
            plot=("resident memory of the worker, MB", "pages in the store"),
            series={"worker": [(float(count), value / 1e6) for count, value in memory.items()]},
        ),
        Row(
            "growth_pages_start",
            f"start of a worker that has {int(many):,} pages, until it serves",
            [started[counts[-1]]],
            None,
            "s",
            {f"{count:,} pages, s": value for count, value in started.items()},
        ),
        Row(
            "control_growth_pages",
            "control: growth with pages: requests to the store",
            [asked],
            Target(0, "", at_least=False),
            "",
        ),
    ]


def _loaded(scene: Scene, worker: WorkerProcess, count: int) -> Callable[[], dict[str, float]]:
    chosen = Random(7).sample(range(count), min(_ASKED, count))
    targets = [
        f"{read_target(path_of(number), 'v1', PAGE_BYTES, keep=True)}&start=0&length={PAGE_BYTES}"
        for number in chosen
    ]

    def once() -> dict[str, float]:
        before = tree_cpu_s(worker.pid)
        seconds = max(0.1, scene.settings.seconds)
        found = scene.loader.run(worker.port, targets, connections=_CONNECTIONS, seconds=seconds)
        cpu = tree_cpu_s(worker.pid) - before
        requests = max(1.0, found["requests"])
        return {"us": found["seconds"] * 1e6 / requests, "cpu_us": cpu * 1e6 / requests}

    return once
