"""The main job, counted by the store's own log."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from main_job import PAGE, client_of, cluster_on, content, data_bytes, data_gets, read_all, store_of

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import StaleVersion
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.rude_http_server import RudeHttpServer

FILES = {
    f"f{number}": content(f"f{number}", size) for number, size in enumerate((0, 1, 999, PAGE, 3 * PAGE + 7))
}
Served = tuple[RudeHttpServer, LocalCluster]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with store_of(**FILES) as store, cluster_on(store, tmp_path) as cluster:
        yield store, cluster


@pytest.mark.parametrize("local", [False, True], ids=["over TCP", "on the same host"])
def test_second_pass_asks_the_store_for_nothing(served: Served, local: bool) -> None:
    store, cluster = served
    with client_of(cluster, local_reads=local) as client:
        assert {name: read_all(client, f"/web/{name}") for name in FILES} == FILES
        first = data_bytes(store)
        assert first <= 1.02 * sum(map(len, FILES.values()))
        gets = data_gets(store)
        assert {name: read_all(client, f"/web/{name}", 70_000) for name in FILES} == FILES
        assert data_gets(store) == gets
    with client_of(cluster, local_reads=local) as other:
        assert {name: read_all(other, f"/web/{name}") for name in FILES} == FILES
        assert data_gets(store) == gets


def test_one_large_read_fetches_each_byte_once(served: Served) -> None:
    store, cluster = served
    with client_of(cluster) as client:
        info = client.info("/web/f4")
        assert client.read(info, 5, info.size) == FILES["f4"][5:]
        assert client.read_ranges([(info, start, 100) for start in range(0, info.size, 90_000)])
    assert data_bytes(store) == info.size


def _read_one_page(options: dict[str, Any], start: Any, results: Any) -> None:
    client = CacheClient(ClientConfig.load(env={}, **options))
    info = client.info("/web/f3")
    start.wait(60)
    results.put(client.read(info, 0, info.size) == FILES["f3"])
    client.close()


def test_64_processes_that_miss_one_page_at_once_cost_one_get(served: Served) -> None:
    store, cluster = served
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(64), context.Queue()
    options = {**cluster.client_options, "local_reads": False}
    processes = [context.Process(target=_read_one_page, args=(options, start, results)) for _ in range(64)]
    for process in processes:
        process.start()
    assert [results.get(timeout=90) for _ in processes] == [True] * 64
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert data_gets(store) == 1


def test_counts_agree_with_one_another_and_with_the_store(served: Served) -> None:
    store, cluster = served
    with client_of(cluster) as client:
        for _ in range(2):
            for name in FILES:
                read_all(client, f"/web/{name}")
        counts = client.metrics
        client.flush_metrics()
    total = cluster.total
    reads = total("kara_worker_page_reads_total")
    hits = total('kara_worker_page_reads_total{result="hit"}')
    assert reads == 2 * hits == 2 * sum(-(-len(data) // PAGE) for data in FILES.values())
    assert total("kara_worker_store_read_bytes_total") == data_bytes(store)
    assert total("kara_worker_read_bytes_total") == 2 * sum(map(len, FILES.values()))
    assert sum(counts.reads.values()) == counts.reads["worker"] == reads
    assert total('kara_client_reads_total{kind="worker"}') == reads
    assert total('alluxio_http_server_result_total{method="read",state="ok"}') == reads


def test_overwritten_between_two_reads_of_an_open_file(served: Served) -> None:
    """All old, all new, or a clear error: whatever is cached where."""
    store, cluster = served
    old, new = FILES["f4"], content("new", len(FILES["f4"]))
    with client_of(cluster) as client:
        info = client.info("/web/f4")
        assert client.read(info, 0, PAGE) == old[:PAGE]
        store.put("d/f4", new)
        assert client.read(info, 0, PAGE) == old[:PAGE]  # cached: still the version that was opened
        with pytest.raises(StaleVersion, match="/web/f4"):
            client.read(info, 2 * PAGE, PAGE)  # not cached: gone
        assert read_all(client, "/web/f4") == new
    with client_of(cluster) as other:
        assert read_all(other, "/web/f4") == new


def test_deleted_while_open(served: Served) -> None:
    store, cluster = served
    with client_of(cluster) as client:
        info = client.info("/web/f4")
        assert client.read(info, 0, 10) == FILES["f4"][:10]
        store.delete("d/f4")
        assert client.read(info, 5, 10) == FILES["f4"][5:15]
        with pytest.raises((FileNotFoundError, StaleVersion)):
            client.read(info, 3 * PAGE, 7)
        with pytest.raises(FileNotFoundError, match="f4"):
            client.info("/web/f4")


@pytest.mark.parametrize("freshness", ["immutable", "max_age=1h"])
def test_trusted_metadata_cost_one_request(tmp_path: Path, freshness: str) -> None:
    with (
        store_of(**FILES) as store,
        cluster_on(store, tmp_path, workers=1, mount={"freshness": freshness}) as cluster,
        client_of(cluster) as client,
    ):
        for _ in range(5):
            client.info("/web/f2")
        assert sum(request.method == "HEAD" for request in store.requests) == 1


def test_free_drops_pages_and_leaves_the_store_alone(served: Served) -> None:
    store, cluster = served
    with client_of(cluster) as client:
        for name in FILES:
            read_all(client, f"/web/{name}")
        assert client.free("/web/f4") == (4, pytest.approx(len(FILES["f4"]), rel=0.02))
        assert client.free("/web", recursive=True)[0] == 3
        gets = data_gets(store)
        assert {name: read_all(client, f"/web/{name}") for name in FILES} == FILES
        assert data_gets(store) > gets


def test_capacity_is_kept_and_reads_go_on(tmp_path: Path) -> None:
    data = content("large", 20 * PAGE)
    with (
        store_of(large=data) as store,
        cluster_on(store, tmp_path, workers=1, capacity_bytes="8MiB", guard=False) as cluster,
        client_of(cluster) as client,
    ):
        for _ in range(3):
            assert read_all(client, "/web/large") == data
        assert cluster.total("kara_worker_page_store_bytes") <= 8 << 20
        assert cluster.total("kara_worker_evictions_total") > 0
