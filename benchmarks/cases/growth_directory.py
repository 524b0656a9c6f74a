"""Listing and looking up in directories of a hundred to a hundred thousand entries."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter

import fsspec

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.rounds import interleave
from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target
from kara_worker.testing.cluster import LocalCluster

_COUNTS = (100, 1_000, 10_000, 100_000)
_TINY = (100, 1_000)
_LOOKED_UP = 200
_ROUNDS = 5


def run(scene: Scene) -> list[Row]:
    """The store is a directory of this machine, so that little but our own part is measured."""
    counts = _TINY if scene.settings.tiny else _COUNTS
    root, home = scene.home / "directories", scene.home / "directories-cluster"
    for count in counts:
        (root / str(count)).mkdir(parents=True)
        for number in range(count):
            (root / str(count) / f"{number:06}.jpg").touch()
    mounts = {"data": {"url": f"file://{root}"}}
    with on_cores(SERVER_CORES):
        cluster = LocalCluster(1, mounts=mounts, directory=home).start()
    fs = None
    try:
        with scene.also(cluster.workers[0].pid), scene.clients_pinned():
            fs = fsspec.filesystem(
                "kara", **cluster.client_options, use_listings_cache=False, skip_instance_cache=True
            )
            rows = _measured(scene, fs, root, counts)
            return [*rows, _seen(fs, root, counts[0])]
    finally:
        if fs is not None:
            fs.close()
        cluster.close()
        shutil.rmtree(root)


def _seen(fs, root: Path, count: int) -> Row:
    """What is measured asks the store: a file that came is in the listing that follows."""
    (root / str(count) / "new.jpg").touch()
    more = len(fs.ls(f"/data/{count}", detail=True)) - count
    what = "control: entries more in a listing after a file came"
    return Row("control_growth_directory", what, [float(more)], Target(1, ""), "")


def _measured(scene: Scene, fs, root: Path, counts: tuple[int, ...]) -> list[Row]:
    def listing(count: int) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            began = perf_counter()
            found = fs.ls(f"/data/{count}", detail=True)
            took = perf_counter() - began
            if len(found) != count:
                raise RuntimeError(f"a listing of {count} entries has {len(found)}")
            began = perf_counter()
            for name in Random(count).choices(range(count), k=_LOOKED_UP):
                fs.info(f"/data/{count}/{name:06}.jpg")
            return {"us": took * 1e6 / count, "info_us": (perf_counter() - began) * 1e6 / _LOOKED_UP}

        return once

    def local() -> dict[str, float]:
        local_fs = fsspec.filesystem("file")
        began = perf_counter()
        local_fs.ls(str(root / str(counts[-1])), detail=True)
        return {"us": (perf_counter() - began) * 1e6 / counts[-1]}

    variants = {str(count): listing(count) for count in counts}
    rounds = interleave({**variants, "local": local}, min(_ROUNDS, scene.settings.rounds), scene.meter)
    few, many = str(counts[1] if len(counts) > 2 else counts[0]), str(counts[-1])
    rows = []
    for key, metric, what in (
        ("ls", "us", "ls, us for each entry"),
        ("info", "info_us", "info of a file, us"),
    ):
        points = [(float(count), rounds.median(str(count), metric)) for count in counts]
        rows.append(
            Row(
                f"growth_directory_{key}",
                f"{what}, directory of {int(many):,} / of {int(few):,}",
                rounds.ratios(many, few, metric),
                Target(1.2, at_least=False),
                detail={f"{count:,.0f} entries": value for count, value in points},
                plot=(what, "entries in the directory"),
                series={"kara": points},
            ).of(rounds)
        )
    what = f"fsspec's own file system, ls of {int(many):,} entries / ours"
    return [*rows, Row("growth_directory_local", what, rounds.ratios("local", many, "us"), None).of(rounds)]
