"""What people run: a checkpoint by torch.load, columns of a Parquet file by pyarrow and DuckDB; and a large
file in one call, over one connection and over several."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from time import perf_counter, process_time
from typing import Any

import fsspec

from benchmarks.machine import ALL_CORES, SERVER_CORES
from benchmarks.rounds import interleave
from benchmarks.scene import MIB, Scene, unpin, warm
from benchmarks.servers import distant_worker
from benchmarks.table_row import Row, Target
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.page_buffers import aligned_memory

_ROUNDS = 3  # each reads a gigabyte several times
_ROUND_TRIP_S = 0.004  # to a worker in another zone
_FLOW_BYTES_PER_S = 625_000_000  # what clouds give one connection: 5 Gbit/s
_PLACES = {
    "host": "through the cache on the worker's host",
    "tcp": "through the cache over TCP",
    "store": "from the fast store by fsspec's http",
    "disk": "from a local disk",
}

Load = Callable[[Any, str], object]  # gets a file system and a path of it


@contextlib.contextmanager
def _opened(scene: Scene, name: str) -> Iterator[dict[str, tuple[Any, str]]]:
    """The same file through each: a file system and the path there. Nothing of listings or facts is kept."""
    options = {**scene.cluster.client_options, "skip_instance_cache": True}
    host = fsspec.filesystem("kara", **options)
    tcp = fsspec.filesystem("kara", **options, local_reads=False)
    try:
        yield {
            "host": (host, f"/near/{name}"),
            "tcp": (tcp, f"/near/{name}"),
            "store": (fsspec.filesystem("http", skip_instance_cache=True), f"{scene.nginx.url}/{name}"),
            "disk": (fsspec.filesystem("file"), str(scene.files / name)),
        }
    finally:
        host.close()
        tcp.close()


def _compared(
    scene: Scene, key: str, what: str, name: str, load: Load, check: Callable[[object], bool]
) -> list[Row]:
    with _opened(scene, name) as places:
        if load is _by_duckdb:
            del places["store"]  # it asks for the time of a change, which fsspec's http does not know

        def variant(place: str) -> Callable[[], dict[str, float]]:
            def once() -> dict[str, float]:
                began = perf_counter()
                found = load(*places[place])
                took = perf_counter() - began
                if not check(found):
                    raise RuntimeError(f"WRONG CONTENT of {name} {_PLACES[place]}")
                return {"s": took}

            return once

        with scene.client() as client:
            client.free(f"/near/{name}")
        cold = scene.fetched()
        for place in places:
            variant(place)()  # warm, and right
        _settled(scene, variant("host"))
        fetched = scene.fetched()
        rounds = interleave(
            {place: variant(place) for place in places}, min(_ROUNDS, scene.settings.rounds), scene.meter
        )
        asked = scene.fetched() - fetched
    detail = {f"{_PLACES[place]}, s": rounds.median(place, "s") for place in places}

    def row(place: str, ours: str, target: Target | None) -> Row:
        title = f"{what}: {_PLACES[place]} / {_PLACES[ours]}, time"
        values = rounds.ratios(place, ours, "s")
        return Row(f"{key}_{place}_{ours}", title, values, target, detail=detail).of(rounds)

    from_store = [row("store", "host", Target(1.0)), row("store", "tcp", None)] if "store" in places else []
    return [
        *from_store,
        row("disk", "host", None),
        _control(f"{key}_cold", f"{what}: bytes from the store, cache empty", fetched - cold, Target(1, "")),
        _control(f"{key}_warm", f"{what}: bytes from the store, warm", asked, Target(0, "", at_least=False)),
    ]


def _control(key: str, what: str, value: float, target: Target) -> Row:
    return Row(f"control_{key}", f"control: {what}", [value], target, "")


def _settled(scene: Scene, once: Callable[[], object]) -> None:
    """A page is written after it was served, so that a second reader may be too early for it."""
    for _ in range(20):
        before = scene.fetched()
        once()
        if scene.fetched() == before:
            return
    raise RuntimeError("the file does not stay in the cache")


@contextlib.contextmanager
def _unpinned(scene: Scene) -> Iterator[None]:
    """Libraries of many threads: everybody has all cores."""
    unpin(scene, ALL_CORES)
    try:
        yield
    finally:
        unpin(scene, SERVER_CORES)


def checkpoint(scene: Scene) -> list[Row]:
    """64 tensors that are one gigabyte, as torch.save writes them."""
    if importlib.util.find_spec("torch") is None:
        scene.skipped["checkpoint by torch.load"] = "torch is not installed"
        return []
    import torch

    size = 16 * MIB if scene.settings.tiny else 1024 * MIB
    home = scene.files / "checkpoint"
    home.mkdir()
    made = torch.Generator().manual_seed(3)
    state = {f"layer.{number}": torch.rand(size // 64 // 4, generator=made) for number in range(64)}
    torch.save(state, home / "state.pt")
    want = {name: float(tensor[-1]) for name, tensor in state.items()}
    del state

    def load(fs: Any, path: str) -> object:
        with fs.open(path, "rb") as file:
            return torch.load(file, weights_only=True)

    def right(found: Any) -> bool:
        return {name: float(tensor[-1]) for name, tensor in found.items()} == want

    what = f"torch.load of a checkpoint of {size // MIB:,} MiB"
    try:
        with _unpinned(scene):
            return _compared(scene, "checkpoint", what, "checkpoint/state.pt", load, right)
    finally:
        shutil.rmtree(home)


def large(scene: Scene) -> list[Row]:
    """A file in one call: over one connection, and over as many as bring more."""
    size = (16 if scene.settings.tiny else 512) * MIB
    path = scene.files / "large.bin"
    with path.open("wb") as file:
        for number in range(size // (16 * MIB)):
            file.write(Random(number).randbytes(16 * MIB))
    try:
        with _unpinned(scene), distant_worker(scene.worker.port, _ROUND_TRIP_S, _FLOW_BYTES_PER_S) as far:
            with scene.also(far.pid):
                return [
                    *_wide(scene, size, "near", "the worker beside us", scene.worker.port, Target(0.95)),
                    *_wide(
                        scene, size, "far", "a worker 4 ms away, 5 Gbit/s a connection", far.port, Target(1.5)
                    ),
                ]
    finally:
        path.unlink()


def _wide(scene: Scene, size: int, key: str, where: str, port: int, target: Target) -> list[Row]:
    place = {"worker_hosts": f"127.0.0.1:{port}", "local_reads": False, "etcd_hosts": None}
    view, want = aligned_memory(size), Random(0).randbytes(MIB)
    with contextlib.ExitStack() as stack:
        clients = {
            # a client takes at most a quarter of its connections for one read
            "one": stack.enter_context(
                CacheClient(ClientConfig.load(env={}, **place, connections_per_worker=4))
            ),
            "several": stack.enter_context(CacheClient(ClientConfig.load(env={}, **place))),
        }

        def variant(name: str) -> Callable[[], dict[str, float]]:
            client = clients[name]
            info = client.info("/near/large.bin")

            def once() -> dict[str, float]:
                began, cpu = perf_counter(), process_time()
                client.read_into(info, 0, view)
                took, cpu = perf_counter() - began, process_time() - cpu
                if view[:MIB] != want:
                    raise RuntimeError("WRONG CONTENT of a large file")
                return {"s": took, "cpu s": cpu}

            return once

        variants = {name: variant(name) for name in clients}
        warm(clients["one"], ["/near/large.bin"])
        rounds = interleave(variants, scene.settings.rounds, scene.meter)
    detail = {
        f"{name}, {metric}": rounds.median(name, metric) for name in clients for metric in ("s", "cpu s")
    }
    detail |= {f"{name}, GB/s": size / rounds.median(name, "s") / 1e9 for name in clients}
    what = f"a file of {size // MIB} MiB in one call, {where}: one connection / as many as bring more"
    return [
        Row(f"large_{key}", f"{what}, time", rounds.ratios("one", "several", "s"), target, detail=detail).of(
            rounds
        ),
        Row(
            f"large_cpu_{key}", f"{what}, the client's CPU", rounds.ratios("one", "several", "cpu s"), None
        ).of(rounds),
    ]


def parquet(scene: Scene) -> list[Row]:
    """Two of twenty columns, which a reader finds by the footer and reads in pieces."""
    missing = [name for name in ("pyarrow", "duckdb") if importlib.util.find_spec(name) is None]
    if missing:
        scene.skipped["Parquet columns"] = f"not installed: {', '.join(missing)}"
        return []
    rows = 50_000 if scene.settings.tiny else 2_000_000
    home = scene.files / "parquet"
    home.mkdir()
    total = _write_parquet(home / "table.parquet", rows)
    size = (home / "table.parquet").stat().st_size / MIB
    what = f"2 of 20 columns of a Parquet file of {size:.0f} MiB"
    try:
        with _unpinned(scene):
            found: list[Row] = []
            for key, library, load in (
                ("pyarrow", "pyarrow", _by_pyarrow), ("duckdb", "DuckDB", _by_duckdb),
            ):  # fmt: skip
                title, name = f"{what}, {library}", "parquet/table.parquet"
                found += _compared(scene, f"parquet_{key}", title, name, load, lambda got: got == total)
            return found
    finally:
        shutil.rmtree(home)


def _write_parquet(path: Path, rows: int) -> int:
    import numpy
    import pyarrow
    import pyarrow.parquet

    chance = numpy.random.default_rng(5)
    columns = {f"c{number}": chance.integers(0, 1 << 40, rows) for number in range(20)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=100_000, compression="none")
    return int(columns["c3"].sum() + columns["c17"].sum())


def _by_pyarrow(fs: Any, path: str) -> object:
    import pyarrow.compute
    import pyarrow.parquet

    with fs.open(path, "rb") as file:
        table = pyarrow.parquet.read_table(file, columns=["c3", "c17"], pre_buffer=True)
    return sum(pyarrow.compute.sum(table[name]).as_py() for name in ("c3", "c17"))


def _by_duckdb(fs: Any, path: str) -> object:
    import duckdb

    with duckdb.connect() as connection:
        if "kara" in fs.protocol:
            connection.register_filesystem(fs)
            path = f"kara://{path.lstrip('/')}"
        row = connection.execute(f"SELECT sum(c3) + sum(c17) FROM read_parquet('{path}')").fetchone()
    return int(row[0]) if row else None
