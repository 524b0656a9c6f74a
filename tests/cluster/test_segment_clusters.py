"""Workers with pages in segments, or in files: read from afar and on the same host, killed, replaced."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from main_job import PAGE, cluster_on, content, data_gets, read_all, store_of
from scripted_worker import FixedMembership

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.membership.base import WorkerInfo
from kara_cache.transport.worker_link import boot_id
from kara_worker.testing.cluster import LocalCluster, WorkerProcess

SMALL = 20_000
FILES = {"big": content("big", 3 * PAGE + 123)} | {f"s{n}": content(f"s{n}", SMALL) for n in range(30)}
PAGES = 4 + 30


@contextmanager
def client_on(worker: WorkerProcess, *, local: bool) -> Iterator[CacheClient]:
    path = worker.ready["socket_path"]
    info = WorkerInfo(worker.id, "127.0.0.1", worker.port, socket_path=path, boot_id=boot_id())
    config = ClientConfig(stall_timeout_s=30.0, local_reads=local)
    client = CacheClient(config, membership=FixedMembership(info))
    try:
        yield client
    finally:
        client.close()


def until_stored(cluster: LocalCluster, pages: int) -> None:
    deadline = time.monotonic() + 60
    while cluster.total("kara_worker_page_store_pages") < pages:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


@pytest.mark.parametrize("kind", ["auto", "files"])
@pytest.mark.parametrize("local", [False, True], ids=["tcp", "same host"])
def test_reads_are_right_cold_warm_and_after_a_kill(tmp_path: Path, local: bool, kind: str) -> None:
    settings = {"page_store": kind, "capacity_bytes": "64MiB"}
    with store_of(**FILES) as store, cluster_on(store, tmp_path, 1, **settings) as cluster:
        (worker,) = cluster.workers
        with client_on(worker, local=local) as client:
            for turn in range(3):
                for name, data in FILES.items():
                    assert read_all(client, f"/web/{name}") == data
                if not turn:
                    until_stored(cluster, PAGES)
            assert bool(client.metrics.reads["local"]) is local
            if local and kind != "files":
                assert {page.start % 4096 for page in client._local.pages.values()} > {0}
            assert client.metrics.fallbacks == {}
        fetched = data_gets(store)
        assert any(worker.page_dir.glob("segments/*.seg")) is (kind != "files")
        assert any(worker.page_dir.glob("pages/*/*")) is (kind == "files")
        worker.kill()
        worker.restart()
        with client_on(worker, local=local) as client:
            for name, data in FILES.items():
                assert read_all(client, f"/web/{name}") == data
        assert data_gets(store) == fetched, "nothing came from the store again"


def test_a_reader_on_the_same_host_of_a_cache_that_is_replaced_all_the_time(tmp_path: Path) -> None:
    """It holds descriptors of segments that are removed while it reads; not one byte is another page's."""
    files = {f"f{n}": content(f"f{n}", 2 * PAGE + n) for n in range(16)}
    settings = {"page_store": "segments", "capacity_bytes": "16MiB", "guard": False, "eviction": "lru"}
    with (
        store_of(**files) as store,
        cluster_on(store, tmp_path, 1, **settings) as cluster,
        client_on(cluster.workers[0], local=True) as client,
    ):
        for _ in range(3):
            for name, data in files.items():
                assert read_all(client, f"/web/{name}", 300_000) == data
                assert read_all(client, f"/web/{name}", 300_000) == data
        assert client.metrics.fallbacks == {}
        assert client.metrics.reads["local"] > 0
        (worker,) = cluster.workers
        assert worker.metrics()['kara_worker_evictions_total{reason="capacity"}'] > 16


def test_views_of_segments_that_come_and_go_and_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    files = {f"f{n}": content(f"f{n}", 2 * PAGE + n) for n in range(16)}
    settings = {"page_store": "segments", "capacity_bytes": "16MiB", "guard": False, "eviction": "lru"}
    with store_of(**files) as store, cluster_on(store, tmp_path, 1, **settings) as cluster:
        (worker,) = cluster.workers
        with client_on(worker, local=True) as client:
            read_all(client, "/web/f0")
            until_stored(cluster, 2)
            first = client.view(client.info("/web/f0"), PAGE, PAGE)
            assert isinstance(first.obj, mmap.mmap)
            views = []
            for name, data in files.items():
                assert read_all(client, f"/web/{name}") == data
                views.append(client.view(client.info(f"/web/{name}"), 100, 5000))
            worker.kill()
            worker.restart()
            assert first == files["f0"][PAGE : 2 * PAGE]
            assert [bytes(view) for view in views] == [data[100:5100] for data in files.values()]
            assert client.metrics.fallbacks == {}
