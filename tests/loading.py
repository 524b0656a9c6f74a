"""What the tests of load jobs share: an OSS store whose log counts, a cluster on it, and exact receipts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.jobs import wait_load
from kara_cache.load_job import LoadJob, LoadState, ManifestSum
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.oss_server import OssServer

PAGE = 64 << 10  # small, so that small files have many
WAIT_S = 100.0


def pages_of(size: int, page_bytes: int = PAGE) -> int:
    return -(-size // page_bytes)


def a_data_set(seed: str, *, small: int, large: int = 0) -> dict[str, bytes]:
    """Names and content: `small` files of 0 to 3 pages in two directories, and one of `large` bytes."""
    rng = random.Random(seed)
    files = {f"{number % 2}/f{number:05d}": rng.randbytes(rng.randrange(3 * PAGE)) for number in range(small)}
    files["0/empty"] = b""
    if large:
        files["large.bin"] = rng.randbytes(large)
    return files


@dataclass
class Place:
    """A cluster that has `files` of an OSS bucket at /data."""

    cluster: LocalCluster
    oss: OssServer
    client: CacheClient
    files: dict[str, bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))

    @property
    def pages(self) -> int:
        return sum(pages_of(len(data)) for data in self.files.values())

    def manifest(self) -> str:
        """As anybody can compute it who may list."""
        manifest = ManifestSum()
        for info in self.client.list("/data", recursive=True):
            manifest.add(info.path, info.version, info.size)
        return manifest.value.hex()

    def data_bytes(self) -> int:
        return sum(request.bytes_sent for request in self.oss.requests.data_gets())

    def wait(self, job: LoadJob, until: Callable[[LoadJob], bool] | None = None) -> LoadJob:
        """The job when it is over, or so far as `until` asks."""
        if until is None:
            return wait_load(self.client, job.id, timeout_s=WAIT_S)
        return wait_for(self.client, job.id, until)

    def check_exact(self, job: LoadJob, *, copies: int = 1) -> None:
        """SUCCEEDED, and true: every page is where readers look for it, and a read asks no store."""
        assert job.state is LoadState.SUCCEEDED, job
        receipt = job.receipt
        assert receipt is not None
        assert (receipt.files, receipt.bytes) == (len(self.files), self.size)
        assert receipt.pages_expected == receipt.pages_present == copies * self.pages, receipt
        assert receipt.failed == receipt.samples == {}
        assert receipt.manifest == self.manifest()
        self.check_served()

    def check_served(self, names: Mapping[str, bytes] | None = None) -> None:
        """The cache alone gives all bytes, to a reader that suspects nobody: `client` may have met a worker
        that did not answer, and would ask the next owner, who has to ask the store."""
        self.oss.requests.clear()
        with client_of(self.cluster) as reader:
            for name, data in (self.files if names is None else names).items():
                info = reader.info(f"/data/{name}")
                assert reader.read(info, 0, info.size) == data, name
        assert self.oss.requests.data_gets() == []


def wait_for(client: CacheClient, path_or_id: str, until: Callable[[LoadJob], bool]) -> LoadJob:
    from kara_cache.jobs import load_progress

    ends = time.monotonic() + WAIT_S
    while True:
        job = load_progress(client, path_or_id)
        if until(job):
            return job
        assert not job.state.final, job
        assert time.monotonic() < ends, job
        time.sleep(0.02)


@contextmanager
def load_place(
    files: dict[str, bytes], directory: Path | None = None, *, workers: int = 3, **settings: Any
) -> Iterator[Place]:
    settings.setdefault("page_bytes", PAGE)
    mount = settings.pop("mount", {})
    with OssServer(public_buckets=["bucket"]) as oss:
        for name, data in files.items():
            oss.objects.put("bucket", name, data)
        options = {"region": oss.region, "use_ssl": False, **mount.pop("options", {})}
        mounts = {"data": {"url": f"oss://{oss.host}/bucket", "options": options, **mount}}
        with LocalCluster(workers, mounts=mounts, directory=directory, **settings) as cluster:
            with client_of(cluster) as client:
                yield Place(cluster, oss, client, files)


@contextmanager
def client_of(cluster: LocalCluster, **options: Any) -> Iterator[CacheClient]:
    settings = {"local_reads": False, "suspect_s": 1.0, **cluster.client_options, **options}
    with CacheClient(ClientConfig.load(env={}, **settings)) as client:
        yield client
