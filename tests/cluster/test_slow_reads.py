"""Five reads that are slow for five reasons, and what `kara explain --slowest` says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import services
from main_job import client_of, cluster_on, content, owner, read_all, store_of
from traced import traced

from kara_cache.cache_client import CacheClient
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.rude_http_server import RudeHttpServer, Rudeness

SIZE = 1500
SLOW = Rudeness(bytes_per_s=5000)
FILES = {f"f{number}": content(f"f{number}", SIZE) for number in range(12)}
Served = tuple[RudeHttpServer, LocalCluster]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with store_of(**FILES) as store, cluster_on(store, tmp_path) as cluster:
        yield store, cluster


def slowest(client: CacheClient, path: str) -> dict[str, Any]:
    """Of this file's reads; its stages are checked to be all of its time."""
    (read, *_) = [read for read in client.slowest_reads(100) if read["path"] == path]
    assert sum(read["stages"].values()) == pytest.approx(read["total_s"], rel=0.05)
    return read


def test_a_cold_page(served: Served) -> None:
    store, cluster = served
    store.misbehave(SLOW)  # as slow as this store always is
    with client_of(cluster) as client:
        assert read_all(client, "/web/f0") == FILES["f0"]
        read = slowest(client, "/web/f0")
    assert read["cause"] == "cold page"
    assert read["length"] == len(FILES["f0"])


def test_a_slow_store(tmp_path: Path) -> None:
    """One worker, so that it knows from the other files what this store usually takes."""
    with store_of(**FILES) as store, cluster_on(store, tmp_path, workers=1) as cluster:
        with client_of(cluster) as client:
            for number in range(1, 12):
                read_all(client, f"/web/f{number}")
            store.misbehave(SLOW)
            read_all(client, "/web/f0")
            read = slowest(client, "/web/f0")
    assert read["cause"] == "slow store"
    assert sum(seconds for name, seconds in read["stages"].items() if name.startswith("store_")) > 0.1


def test_another_readers_fill(served: Served) -> None:
    store, cluster = served
    store.misbehave(SLOW)
    with client_of(cluster) as first, client_of(cluster) as second:
        infos = [client.info("/web/f0") for client in (first, second)]
        gets = len(store.requests)
        early = threading.Thread(target=first.read, args=(infos[0], 0, SIZE))
        early.start()
        eventually(lambda: len(store.requests) > gets)
        assert second.read(infos[1], 0, SIZE) == FILES["f0"]
        early.join(60)
        causes = {read["cause"] for read in second.slowest_reads(100) if read["path"] == "/web/f0"}
        second.flush_metrics()
    with client_of(cluster) as third:
        causes |= {read["cause"] for read in third.slowest_reads(100) if read["path"] == "/web/f0"}
    assert causes == {"another's fill", "cold page"}


def test_a_dead_owner(served: Served) -> None:
    _, cluster = served
    with client_of(cluster, stall_timeout_s=0.5) as client:
        read_all(client, "/web/f0")
        hung = owner(cluster, client, "/web/f0")
        info = client.info("/web/f0")
        hung.pause()
        try:
            assert client.read(info, 0, SIZE) == FILES["f0"]
            reads = [read for read in client.slowest_reads(100) if read["path"] == "/web/f0"]
        finally:
            hung.resume()
    assert reads[0]["cause"] == "dead owner"
    assert reads[0]["stages"]["detour"] > 0.4


@pytest.mark.fault
def test_a_slow_disk(tmp_path: Path) -> None:
    with store_of(**FILES) as store, cluster_on(store, tmp_path, workers=1) as cluster:
        with client_of(cluster) as client:
            read_all(client, "/web/f0")
            eventually(lambda: client.explain("/web/f0")["workers"][0].get("cached") == 1)
        (worker,) = cluster.workers
        worker.restart()  # so that the page has to be opened again
        with client_of(cluster) as client:
            info = client.info("/web/f0")
            services.require_strace()
            with traced(worker.pid, "openat:delay_enter=300000"):
                assert client.read(info, 0, SIZE) == FILES["f0"]
            read = slowest(client, "/web/f0")
    assert read["cause"] == "slow disk"
    assert read["stages"]["disk"] > 0.25


def test_on_the_command_line(served: Served) -> None:
    store, cluster = served
    store.misbehave(SLOW)
    with client_of(cluster) as client:
        read_all(client, "/web/f0")
    environment = {**os.environ, "KARA_WORKER_HOSTS": cluster.worker_hosts}

    def kara(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kara_cache.cli.main", "explain", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    shown = kara("--slowest", "5")
    assert shown.returncode == 0, shown.stderr
    assert "cold page" in shown.stdout
    assert "/web/f0" in shown.stdout
    (first, *_) = json.loads(kara("--slowest", "5", "--json").stdout)
    assert (first["path"], first["cause"]) == ("/web/f0", "cold page")
    assert kara().returncode == 2


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_document_that_is_bad_in_part_changes_nothing(served: Served) -> None:
    _, cluster = served
    worker = cluster.workers[0]
    good = {"counters": {"reads": {"worker": 7}, "fallbacks": {"busy": 3}}}
    read = {
        "at": 1.0,
        "path": "/web/f0",
        "start": 0,
        "length": 1,
        "worker": "w",
        "total_s": 1.0,
        "stages": {},
    }

    def told(document: object) -> int:
        url = f"http://{worker.address}/kara/v1/client-metrics"
        return requests.post(url, data=json.dumps(document), timeout=60).status_code

    def counted() -> tuple[float, float, int]:
        seen = worker.metrics()
        reads = seen.get('kara_client_reads_total{kind="worker"}', 0.0)
        with client_of(cluster) as client:
            return reads, seen['kara_client_fallbacks_total{kind="busy"}'], len(client.slowest_reads(100))

    bad = ("text", [read] * 65, [{**read, "path": "f0"}], [read, {**read, "stages": {"tea": 1.0}}])
    for slow in bad:
        assert told({**good, "slow_reads": slow}) == 400
    assert told({"counters": {"reads": {"worker": -1}}, "slow_reads": [read]}) == 400
    assert told([]) == 400
    assert counted() == (0, 0, 0)
    assert told({**good, "slow_reads": [read]}) == 200
    assert counted() == (7, 3, 1)
