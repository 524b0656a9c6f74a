"""What the tests of the main job share: a store whose log counts, a cluster on it, a client of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.rude_http_server import RudeHttpServer

PAGE = 1 << 20


def content(name: str, size: int) -> bytes:
    """Bytes that say which file and place they are of: no two pages are alike."""
    return random.Random(name).randbytes(size)


def data_gets(store: RudeHttpServer) -> int:
    """Requests that got content, by the store's own log (a HEAD that says 0 bytes is asked again by GET)."""
    return sum(request.method == "GET" and request.sent_bytes > 0 for request in store.requests)


def data_bytes(store: RudeHttpServer) -> int:
    return sum(request.sent_bytes for request in store.requests if request.method == "GET")


@contextlib.contextmanager
def store_of(**files: bytes) -> Iterator[RudeHttpServer]:
    store = RudeHttpServer({f"d/{name}": data for name, data in files.items()})
    try:
        yield store
    finally:
        store.close()


def cluster_on(store: RudeHttpServer, directory: Path, workers: int = 3, **settings: Any) -> LocalCluster:
    """Mounts the store's directory at /web; not started yet."""
    settings.setdefault("lease_ttl_s", 1)
    mounts = {"web": {"url": f"{store.url}/d", **settings.pop("mount", {})}}
    return LocalCluster(workers, mounts=mounts, directory=directory, **settings)


@contextlib.contextmanager
def client_of(cluster: LocalCluster, **options: Any) -> Iterator[CacheClient]:
    settings = {"local_reads": False, "suspect_s": 2.0, **cluster.client_options, **options}
    client = CacheClient(ClientConfig.load(env={}, **settings))
    try:
        yield client
    finally:
        client.close()


def read_all(client: CacheClient, path: str, piece: int = PAGE) -> bytes:
    info = client.info(path)
    data = bytearray(info.size)
    for start in range(0, info.size, piece):
        view = memoryview(data)[start : start + piece]
        assert client.read_into(info, start, view) == len(view)
    return bytes(data)


def owner(cluster: LocalCluster, client: CacheClient, path: str) -> WorkerProcess:
    """The worker that the client asks first for the beginning of the file."""
    return cluster.worker(client.explain(path)["owners"][0]["workers"][0])
