"""Does a read cost more when the worker has more pages? Ten thousand to a million of them.

Reads of two kinds, each a short turn that every worker has in each round: of pages that were not read for
longest, which are looked up in the index and opened; and of the same few pages again and again. Which kind a
read is must not depend on how fast the worker is: a turn is a number of reads, not a time, and more pages
pass between two reads of the first kind than a worker keeps open. A second worker with as many pages as the
first says how far two that are alike differ.
"""

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
from benchmarks.rounds import interleave, threads_cpu_s, tree_cpu_s
from benchmarks.scene import MIB, Scene
from benchmarks.table_row import Row, Target
from kara_cache.wire import read_target
from kara_worker.testing.cluster import LocalCluster, WorkerProcess

_COUNTS = (10_000, 100_000, 1_000_000)
_TINY = (500, 2_000, 6_000)
_AGAIN = "again"  # another worker with as many pages as the smallest
_ASKED = 10_000  # different pages that are read, of however many there are; a worker keeps 8192 open
_TURN = 1_000  # reads of pages that are not open
_OPEN = 1_000  # pages that are read in every turn
_OPEN_TURNS = 4  # reads of each of them in one
_CONNECTIONS = 16
_ROUNDS = 6  # for each that is asked for: they are short
_FILL_S = 240.0  # the next population is left out when it would take longer than this
_CALM_S = 0.05  # of processor time in half a second
_MOST_SETTLING_S = 60.0


def run(scene: Scene) -> list[Row]:
    with contextlib.ExitStack() as stack:
        workers: dict[str, WorkerProcess] = {}
        started: dict[int, float] = {}
        counts = _TINY if scene.settings.tiny else _COUNTS
        for name, count in [(_AGAIN, counts[0]), *((str(count), count) for count in counts)]:
            home = scene.home / f"pages-{name}"
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            if not _fill(scene, home, count):
                break
            began = perf_counter()
            workers[name] = stack.enter_context(_worker(scene, home, count))
            started[count] = perf_counter() - began
            _settle(workers[name])
        if len(workers) < 3:
            return []
        stack.enter_context(scene.also(*(worker.pid for worker in workers.values())))
        stack.enter_context(scene.clients_pinned())
        memory = {count: float(resident_bytes(workers[str(count)].pid)) for count in started}
        return [*_measured(scene, workers, list(started)), *_stood(memory, started)]


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


def _measured(scene: Scene, workers: dict[str, WorkerProcess], counts: list[int]) -> list[Row]:
    variants: dict[str, Callable[[], dict[str, float]]] = {}
    for name, worker in workers.items():
        count = counts[0] if name == _AGAIN else int(name)
        reads = _Reads(scene, worker, count)
        reads.warm()
        variants[name], variants[f"{name} open"] = reads.of_others, reads.of_open
    fetched = scene.nginx.requests()
    rounds = interleave(variants, _ROUNDS * scene.settings.rounds, scene.meter)
    asked = scene.nginx.requests() - fetched
    few, many = str(counts[0]), str(counts[-1])
    title = f"read of one of {counts[-1]:,} pages / of {counts[0]:,} pages"
    same = f"control: the same of another worker with {counts[0]:,} pages / of the first"
    compared = (
        ("time", many, few, "", "us", f"{title}, us a read", Target(1.2, at_least=False)),
        ("cpu", many, few, "", "cpu_us", f"{title}, us of the worker's CPU a read", None),
        ("open", many, few, " open", "us", f"{title}, of the same {_OPEN:,} again, us", None),
        ("alike", _AGAIN, few, "", "us", f"{same}, us a read", Target(1.05, at_least=False)),
        ("alike_cpu", _AGAIN, few, "", "cpu_us", f"{same}, us of the worker's CPU a read", None),
    )
    rows = []
    for key, over, under, kind, metric, what, target in compared:
        points = [(float(count), rounds.median(f"{count}{kind}", metric)) for count in counts]
        rows.append(
            Row(
                f"growth_pages_{key}",
                what,
                rounds.ratios(f"{over}{kind}", f"{under}{kind}", metric),
                target,
                detail={f"{count:,.0f} pages, us": value for count, value in points},
                plot=(f"{what}, {_CONNECTIONS} connections", "pages in the store"),
                series={"worker": points} if over == many else {},
            ).of(rounds)
        )
    what = "control: growth with pages: requests to the store"
    return [*rows, Row("control_growth_pages", what, [asked], Target(0, "", at_least=False), "")]


def _stood(memory: dict[int, float], started: dict[int, float]) -> list[Row]:
    """What the pages take before anybody reads them."""
    few, many = min(memory), max(memory)
    each = (memory[many] - memory[few]) / (many - few)
    points = [(float(count), value / 1e6) for count, value in memory.items()]
    return [
        Row(
            "growth_pages_memory",
            f"memory of the worker for each page, {few:,} to {many:,} pages",
            [each],
            None,
            "bytes",
            {f"{count:,.0f} pages, resident MB": value for count, value in points},
            plot=("resident memory of the worker, MB", "pages in the store"),
            series={"worker": points},
        ),
        Row(
            "growth_pages_start",
            f"start of a worker that has {many:,} pages, until it serves",
            [started[many]],
            None,
            "s",
            {f"{count:,} pages, s": value for count, value in started.items()},
        ),
    ]


class _Reads:
    """The same pages of every population, by their numbers, in the same order."""

    def __init__(self, scene: Scene, worker: WorkerProcess, count: int) -> None:
        chosen = Random(7).sample(range(count), min(_ASKED, count))
        targets = [
            f"{read_target(path_of(number), 'v1', PAGE_BYTES, keep=True)}&start=0&length={PAGE_BYTES}"
            for number in chosen
        ]
        few = min(_OPEN, len(targets) // 2)
        self._open, self._others = targets[:few], targets[few:]
        self._at = 0
        self._loader = scene.loader
        self._worker = worker

    def warm(self) -> None:
        """Files are known from their first read on, answers are kept from their second on."""
        for _ in range(2):
            self._read([*self._others, *self._open])

    def of_open(self) -> dict[str, float]:
        return self._read(self._open * _OPEN_TURNS)

    def of_others(self) -> dict[str, float]:
        """Those that were not read for longest."""
        first, self._at = self._at, (self._at + _TURN) % len(self._others)
        return self._read((self._others * 2)[first : first + min(_TURN, len(self._others))])

    def _read(self, targets: list[str]) -> dict[str, float]:
        before = threads_cpu_s(self._worker.pid)
        found = self._loader.once(self._worker.port, targets, connections=_CONNECTIONS)
        cpu = threads_cpu_s(self._worker.pid) - before
        return {"us": found["seconds"] * 1e6 / len(targets), "cpu_us": cpu * 1e6 / len(targets)}
