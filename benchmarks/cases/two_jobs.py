"""Two jobs read the same data set: how often the store is asked for each byte, with each way to cache it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.scene import KIB, Scene
from benchmarks.servers import Server, nginx
from benchmarks.table_row import Row, Target
from kara_worker.testing.cluster import LocalCluster

_FILES, _BYTES = 400, 256 * KIB
_WAYS = {
    "kara": "kara_cache, both jobs on this host's worker",
    "filecache": "fsspec filecache, a directory for each job",
    "direct": "no cache",
}
# Reads every file in an order of its own, as a shuffled epoch does, and says how many bytes came.
_JOB = """
import json, random, sys
import fsspec
protocol, options, names, seed = json.loads(sys.argv[1])
fs = fsspec.filesystem(protocol, **options)
random.Random(seed).shuffle(names)
count = 0
for name in names:
    with fs.open(name, "rb") as file:
        count += len(file.read())
print(count)
"""


def run(scene: Scene) -> list[Row]:
    files = 40 if scene.settings.tiny else _FILES
    home = scene.home / "two-jobs"
    root = home / "files"
    root.mkdir(parents=True)
    for number in range(files):
        (root / f"{number}.bin").write_bytes(number.to_bytes(4, "little") * (_BYTES // 4))
    found = {}
    for way in _WAYS:
        log = home / f"{way}.log"
        with on_cores(SERVER_CORES), nginx(root, home / f"nginx-{way}", log=log) as store:
            found[way] = _jobs(scene, way, store, home / way, files)
        found[way]["bytes"] = float(sum(map(int, log.read_text().split()))) / (files * _BYTES)
    shutil.rmtree(home, ignore_errors=True)
    rows = []
    for way, what in _WAYS.items():
        target = Target(1.02, at_least=False) if way == "kara" else None
        detail = {"first job, s": found[way]["first"], "second job, s": found[way]["second"]}
        title = f"two jobs read {files} files once each: bytes from the store / size of the files, {what}"
        rows.append(Row(f"two_jobs_{way}", title, [found[way]["bytes"]], target, detail=detail))
    control = Row(
        "control_two_jobs", "control: without a cache the store is asked for everything twice",
        [found["direct"]["bytes"]], Target(1.99),
    )  # fmt: skip
    return [*rows, control]


def _jobs(scene: Scene, way: str, store: Server, home: Path, files: int) -> dict[str, float]:
    """Seconds of the first job and of the second, which begins when the first has ended."""
    times = {}
    with _places(way, store, home) as (protocol, options, prefix):
        for number, job in enumerate(("first", "second")):
            more = {"cache_storage": str(home / job)} if way == "filecache" else {}
            names = [f"{prefix}/{name}.bin" for name in range(files)]
            asked = json.dumps([protocol, {**options, **more}, names, number])
            began = perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _JOB, asked], capture_output=True, text=True, timeout=300, check=False
            )
            times[job] = perf_counter() - began
            if done.returncode or int(done.stdout) != files * _BYTES:
                raise RuntimeError(f"{way}, {job} job: {done.stdout} {done.stderr[-500:]}")
    return times


@contextlib.contextmanager
def _places(way: str, store: Server, home: Path) -> Iterator[tuple[str, dict[str, object], str]]:
    """Protocol, options and the prefix of names."""
    if way == "direct":
        yield "http", {}, store.url
    elif way == "filecache":
        yield "filecache", {"target_protocol": "http"}, store.url
    else:
        mounts = {"data": {"url": store.url, "freshness": "immutable"}}
        with on_cores(SERVER_CORES), LocalCluster(1, mounts=mounts, directory=home / "cluster") as cluster:
            yield "kara", dict(cluster.client_options), "/data"
