"""One to eight workers on this host: how evenly requests fall on them.

Whom a file falls to is arithmetic on its name and on the table of slots (`kara_cache/placement.py`). So there
are three figures of the same thing: the table's own, exact; that of a million names, which is what the
promise is about; and that of files which are really read, where chance has a part. That reads go where the
names say is the control.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from time import perf_counter

from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.placement import Placement
from kara_cache.stripe import stripe_key
from kara_worker.testing.cluster import LocalCluster

_COUNTS = (1, 2, 4, 8)
_MISPLACED = 0.001  # of the reads: detours on a busy machine
_NAMES = 1_000_000  # chance gives each of eight workers 0.3 % more or less (one sigma), the fullest 0.4 more
_FILES = 16_000  # that are read; here chance gives 2.1 % and 3
_FEWER = 8_000  # for fewer workers
_BYTES = 1024
_BATCH = 1000


def run(scene: Scene) -> list[Row]:
    files = 600 if scene.settings.tiny else _FILES
    counts = (1, 2) if scene.settings.tiny else _COUNTS
    root = scene.home / "many"
    for number in range(files):
        path = root / _name(number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(number.to_bytes(4, "little") * (_BYTES // 4))
    try:
        fewer = min(files, _FEWER)
        load = {count: _load(scene, root, count, files if count == counts[-1] else fewer) for count in counts}
    finally:
        shutil.rmtree(root)
    return _rows(load, counts[-1], files, tiny=scene.settings.tiny)


@dataclass(frozen=True)
class _Load:
    """What came to the workers of one cluster."""

    served: list[float]  # pages that each was asked for
    misplaced: float  # of them, those that placement has elsewhere, as a part
    us: float  # a read
    placement: Placement

    @property
    def balance(self) -> float:
        return _balance(self.served)


def _rows(load: dict[int, _Load], most: int, files: int, *, tiny: bool) -> list[Row]:
    found = load[most]
    table, names = _of_table(found.placement), _of_names(found.placement, files if tiny else _NAMES)
    points = [(float(count), one.balance) for count, one in load.items()]
    return [
        Row(
            "control_growth_workers",
            "control: pages that the workers were asked for / files that were read",
            [sum(found.served) / files],
            Target(1.0),
        ),
        Row(
            "control_growth_workers_place",
            "control: part of the reads that went elsewhere than their names say",
            [found.misplaced],
            Target(_MISPLACED, "", at_least=False),
            "",
        ),
        Row(
            "growth_workers_balance",
            f"{most} workers: most loaded / mean, of {_NAMES:,} names",
            [names],
            None if tiny else Target(1.05, at_least=False),
            detail={"of the slots in the table": table, "of the names": names, "of the reads": found.balance},
        ),
        Row(
            "growth_workers_reads",
            f"{most} workers: most loaded / mean, {files:,} reads of different files, chance and all",
            [found.balance],
            None,
            detail={
                **{f"{count:.0f} workers": value for count, value in points},
                "part of chance, one sigma of one worker": sqrt((most - 1) / files),
            },
            plot=("most loaded worker / mean", "workers"),
            series={"measured": points},
        ),
        Row(
            "growth_workers_seconds",
            f"first reads of 1 KiB in batches, {most} workers / 1 worker on the same cores, time",
            [found.us / load[1].us],
            None,
            detail={f"{count} workers, us a read": one.us for count, one in load.items()},
        ),
    ]


def _name(number: int) -> str:
    return f"{number // 1000}/{number}.bin"


def _balance(loads: Collection[float]) -> float:
    return max(loads) * len(loads) / sum(loads)


def _of_table(placement: Placement) -> float:
    counts = Counter(owners[0] for owners in placement.owners_of_slot)
    return _balance([counts[worker] for worker in placement.workers])


def _of_names(placement: Placement, count: int) -> float:
    names = (stripe_key(f"/data/{_name(number)}", 0) for number in range(count))
    counts = Counter(placement.owners(name, 1)[0] for name in names)
    return _balance([counts[worker] for worker in placement.workers])


def _load(scene: Scene, root: Path, count: int, files: int) -> _Load:
    home = scene.home / f"workers-{count}"
    mounts = {"data": {"url": f"file://{root}", "freshness": "immutable"}}
    cluster = LocalCluster(count, mounts=mounts, directory=home, peers=True)
    with cluster, scene.also(*(worker.pid for worker in cluster.workers)):
        options = {**cluster.client_options, "local_reads": False}
        with CacheClient(ClientConfig.load(env={}, **options)) as client:
            infos = [info for info in client.list("/data", recursive=True) if not info.is_dir][:files]
            if len(infos) != files:
                raise RuntimeError(f"{files} files, and {len(infos)} in the listing")
            began = perf_counter()
            for at in range(0, files, _BATCH):
                client.read_ranges([(info, 0, _BYTES) for info in infos[at : at + _BATCH]])
            took = perf_counter() - began
            placement = Placement.build({one.id: one.capacity_bytes for one in client.workers().workers})
        served = {worker.address: _served(worker.metrics()) for worker in cluster.workers}
    shutil.rmtree(home, ignore_errors=True)
    if sum(served.values()) < files:
        raise RuntimeError(f"{sum(served.values()):.0f} pages were asked for, {files} were read")
    said = Counter(placement.owners(stripe_key(info.path, 0), 1)[0] for info in infos)
    misplaced = sum(abs(reads - said[worker]) for worker, reads in served.items()) / 2 / files
    return _Load(list(served.values()), misplaced, took * 1e6 / files, placement)


def _served(metrics: dict[str, float]) -> float:
    """Pages that it was asked for, whether they were there or came just then."""
    return sum(value for name, value in metrics.items() if name.startswith("kara_worker_page_reads_total"))
