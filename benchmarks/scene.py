"""What every case stands on: files, nginx over them, a worker that caches them, clients of that worker."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine
from benchmarks.loader import Loader
from benchmarks.machine import CLIENT_CORES, SERVER_CORES, on_cores
from benchmarks.rounds import Meter, Settings
from benchmarks.servers import Server, distant_store, nginx
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import read_target
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.etcd_server import EtcdServer

KIB, MIB = 1 << 10, 1 << 20
SIZES = {"4KiB": 4 * KIB, "100KiB": 100 * KIB, "1MiB": MIB, "4MiB": 4 * MIB}
FIRST_BYTE_S = 0.020  # an object store's; 10 to 50 ms is usual
DISTANT_BYTES_PER_S = 100_000_000  # of one connection to an object store


@dataclass
class Scene:
    """Running servers. `near` is the mount of the fast store, `far` of the distant one."""

    settings: Settings
    home: Path
    files: Path
    nginx: Server
    distant: Server
    worker: WorkerProcess
    cluster: LocalCluster
    loader: Loader
    meter: Meter
    pids: list[int]  # of all servers
    names: Names
    skipped: dict[str, str] = field(default_factory=dict)  # what was not measured, and why

    @contextlib.contextmanager
    def client(self, **options: object) -> Iterator[CacheClient]:
        """A client as on another host; with local_reads=True as on the worker's own."""
        settings = {"local_reads": False, **self.cluster.client_options, **options}
        with CacheClient(ClientConfig.load(env={}, **settings)) as client:
            yield client

    @contextlib.contextmanager
    def clients_pinned(self) -> Iterator[None]:
        with on_cores(CLIENT_CORES):
            yield

    @contextlib.contextmanager
    def also(self, *pids: int) -> Iterator[None]:
        """Their CPU time is ours while the context lasts."""
        self.pids += pids
        try:
            yield
        finally:
            for pid in pids:
                self.pids.remove(pid)

    def fetched(self) -> float:
        """Bytes that the worker has taken from stores so far."""
        return self.cluster.total("kara_worker_store_read_bytes_total")

    def targets(self, client: CacheClient, names: list[str]) -> list[str]:
        """Request targets for whole files, from the worker."""
        found = []
        for name in names:
            info = client.info(f"/near/{name}")
            found.append(f"{_target(info)}&start=0&length={info.size}")
        return found


_COUNTS = {"big": 2, "small": 200}
_BYTES = {**SIZES, "big": 64 * MIB, "small": 64 * KIB}


class Names(dict[str, list[str]]):
    """Files of each size by its label, written when first asked for: random bytes, always the same."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, label: str) -> list[str]:
        size = _BYTES[label]
        count = _COUNTS.get(label) or (64 if size < MIB else 64 * MIB // size)
        self[label] = [f"{label}/{number}.bin" for number in range(count)]
        (self._root / label).mkdir(parents=True, exist_ok=True)
        source = random.Random(label)
        for name in self[label]:
            (self._root / name).write_bytes(source.randbytes(size))
        return self[label]


def request_bytes(info: FileInfo, start: int, length: int) -> bytes:
    """A read, byte for byte as CacheClient sends it but for the host's name."""
    return f"GET {_target(info)}&start={start}&length={length} HTTP/1.1\r\nHost: b\r\n\r\n".encode()


def read_url(worker: WorkerProcess, info: FileInfo, start: int, length: int) -> str:
    return f"http://{worker.address}{_target(info)}&start={start}&length={length}"


def _target(info: FileInfo) -> str:
    return read_target(info.path, info.version, info.size, keep=True)


def warm(client: CacheClient, paths: list[str]) -> None:
    """Reads until every page comes from SSD: a page is written after it was served."""
    for _ in range(50):
        before = client.metrics.worker_reads.get("fill", 0)
        for path in paths:
            info = client.info(path)
            for start in range(0, info.size, MIB):
                client.read(info, start, MIB)
        if client.metrics.worker_reads.get("fill", 0) == before:
            return
    raise RuntimeError(f"{len(paths)} files do not stay in the cache")


@contextlib.contextmanager
def scene(settings: Settings, home: Path) -> Iterator[Scene]:
    """Starts everything. Files are on the file system of `home`, which should not be tmpfs."""
    machine.allow_many_files()
    files = home / "files"
    files.mkdir(parents=True, exist_ok=True)
    names = Names(files)
    with contextlib.ExitStack() as stack:
        with on_cores(SERVER_CORES):
            near = stack.enter_context(nginx(files, home / "nginx"))
        distant = stack.enter_context(
            distant_store(files, first_byte_s=FIRST_BYTE_S, bytes_per_s=DISTANT_BYTES_PER_S)
        )
        etcd = stack.enter_context(EtcdServer())
        mounts = {
            # what a data set is; nothing below measures the store's answers to "is it still the same?"
            name: {"url": server.url, "freshness": "immutable"}
            for name, server in (("near", near), ("far", distant))
        }
        with on_cores(SERVER_CORES):
            cluster = LocalCluster(
                1, mounts=mounts, etcd=etcd, directory=home / "cluster", capacity_bytes="8GiB"
            )
            stack.enter_context(cluster)
        worker = cluster.workers[0]
        pids = [near.pid, distant.pid, worker.pid, etcd.pid]
        loader, meter = Loader(home / "loader"), Meter(lambda: pids)
        yield Scene(settings, home, files, near, distant, worker, cluster, loader, meter, pids, names)


def unpin(scene: Scene, cores: frozenset[int]) -> None:
    """Moves the servers that are pinned, with all their threads."""
    for pid in (scene.nginx.pid, scene.worker.pid):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)
