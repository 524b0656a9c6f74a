"""One to eight workers on this host: how evenly real requests fall on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import perf_counter

from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_worker.testing.cluster import LocalCluster

_COUNTS = (1, 2, 4, 8)
_FILES = 30_000  # so many that chance alone gives no more than 1.04 at eight workers, three sigma
_FEWER = 8_000  # for fewer workers, where chance does less
_BYTES = 1024
_BATCH = 1000


def run(scene: Scene) -> list[Row]:
    files = 600 if scene.settings.tiny else _FILES
    counts = (1, 2) if scene.settings.tiny else _COUNTS
    root = scene.home / "many"
    for number in range(files):
        path = root / f"{number // 1000}" / f"{number}.bin"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(number.to_bytes(4, "little") * (_BYTES // 4))
    try:
        fewer = files if scene.settings.tiny else _FEWER
        load = {count: _load(scene, root, count, files if count == counts[-1] else fewer) for count in counts}
    finally:
        shutil.rmtree(root)
    most = counts[-1]
    balance = {count: max(found) * len(found) / sum(found) for count, (found, _) in load.items()}
    return [
        Row(
            "control_growth_workers",
            "control: pages that the workers were asked for / files that were read",
            [sum(load[most][0]) / files],
            Target(1.0),
        ),
        Row(
            "growth_workers_balance",
            f"{most} workers: most loaded / mean, {files:,} reads of different files",
            [balance[most]],
            None if scene.settings.tiny else Target(1.05, at_least=False),
            detail={f"{count} workers": value for count, value in balance.items()},
            plot=("most loaded worker / mean", "workers"),
            series={"measured": [(float(count), value) for count, value in balance.items()]},
        ),
        Row(
            "growth_workers_seconds",
            f"first reads of 1 KiB in batches, {most} workers / 1 worker on the same cores, time",
            [load[most][1] / load[counts[0]][1]],
            None,
            detail={f"{count} workers, us a read": us for count, (_, us) in load.items()},
        ),
    ]


def _load(scene: Scene, root: Path, count: int, files: int) -> tuple[list[float], float]:
    """Reads that came to each worker, and the microseconds that each took."""
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
        served = [_served(worker.metrics()) for worker in cluster.workers]
    shutil.rmtree(home, ignore_errors=True)
    if sum(served) < files:
        raise RuntimeError(f"{sum(served):.0f} pages were asked for, {files} were read")
    return served, took * 1e6 / files


def _served(metrics: dict[str, float]) -> float:
    """Pages that it was asked for, whether they were there or came just then."""
    return sum(value for name, value in metrics.items() if name.startswith("kara_worker_page_reads_total"))
