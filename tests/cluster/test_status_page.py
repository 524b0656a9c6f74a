"""The status page of a worker's admin port, as a script and as a browser sees it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
import services

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_worker.testing.cluster import LocalCluster, WorkerProcess

pytestmark = pytest.mark.etcd
WAIT_S = 60.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "hot.bin").write_bytes(os.urandom(2 << 20))
    mounts = {"data": f"file://{tmp_path}/store"}
    with etcd_servers.server() as etcd, LocalCluster(3, mounts=mounts, etcd=etcd, lease_ttl_s=1) as running:
        yield running


def status(worker: WorkerProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.admin_port}/status.json", timeout=30) as answer:
        return dict(json.load(answer))


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.1)


def read_often(cluster: LocalCluster) -> None:
    config = ClientConfig.load(env={}, **cluster.client_options, local_reads=False)
    with CacheClient(config) as client:
        info, data = client.info("/data/hot.bin"), bytearray(2 << 20)
        for _ in range(200):
            assert client.read_into(info, 0, data) == len(data)


def test_all_members_are_seen_from_each(cluster: LocalCluster) -> None:
    read_often(cluster)
    seen = [status(worker) for worker in cluster.workers]
    for worker, document in zip(cluster.workers, seen, strict=True):
        assert document["worker"]["id"] == worker.id
        assert {member["id"] for member in document["members"]} == {one.id for one in cluster.workers}
        assert {member["state"] for member in document["members"]} == {"active"}
        assert sum(member["page_reads"]["miss"] for member in document["members"]) == 2
        assert sum(member["used_bytes"] for member in document["members"]) > 2 << 20
        assert document["loads"] == document["fallbacks"] == []
    assert ["/data/hot.bin"] in [[path for path, _ in document["hot_paths"]] for document in seen]


def test_a_killed_worker_turns_passive(cluster: LocalCluster) -> None:
    gone = cluster.workers[1]
    cluster.workers[0].pause()  # and one that does not answer keeps nobody waiting for ever
    gone.kill()

    def passive() -> bool:
        members = {member["id"]: member for member in status(cluster.workers[2])["members"]}
        return members[gone.id]["state"] == "passive" and "error" in members[gone.id]

    eventually(passive, "passive")
    cluster.workers[0].resume()


def test_detours_are_gathered_from_all_members(cluster: LocalCluster) -> None:
    config = ClientConfig.load(env={}, **cluster.client_options, local_reads=False)
    with CacheClient(config) as client:
        info = client.info("/data/hot.bin")
        owners = client.explain("/data/hot.bin")["owners"][0]["workers"]
        cluster.worker(owners[0]).kill()
        assert len(client.read(info, 0, 1000)) == 1000
    alive = [worker for worker in cluster.workers if worker.alive]
    for worker in alive:
        eventually(
            lambda worker=worker: "refused" in {d["reason"] for d in status(worker)["fallbacks"]}, "told"
        )


def test_names_of_files_stay_inside_where_others_can_connect(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x" * 100_000)
    with LocalCluster(
        1, mounts={"data": f"file://{tmp_path}"}, admin_host="0.0.0.0", admin_anonymous=True
    ) as cluster:
        with CacheClient(ClientConfig.load(env={}, **cluster.client_options, local_reads=False)) as client:
            info = client.info("/data/a.bin")
            for _ in range(200):
                client.read(info, 0, 1000)
        document = status(cluster.workers[0])
        assert document["hot_paths"] is None
        assert "a.bin" not in json.dumps(document)


def test_the_page_needs_nobody_else(cluster: LocalCluster) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.workers[0].admin_port, timeout=30)
    connection.request("GET", "/", headers={"Accept": "text/html,*/*"})
    answer = connection.getresponse()
    page = answer.read().decode()
    connection.close()
    assert answer.getheader("content-type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in str(answer.getheader("content-security-policy"))
    assert not re.search(r"(src|href)=\"(?!data:,)|https?://|@import|url\(", page)


def test_in_a_browser(cluster: LocalCluster, tmp_path: Path) -> None:
    """Headless Chromium: what the page shows after its script ran, and nothing on the console."""
    chromium = shutil.which("chromium") or services.missing("chromium")
    read_often(cluster)
    cluster.workers[1].kill()
    gone = cluster.workers[1].id
    eventually(
        lambda: {m["id"]: m["state"] for m in status(cluster.workers[0])["members"]}[gone] == "passive",
        "passive",
    )
    done = subprocess.run(
        [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}/profile",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            "--dump-dom",
            f"http://127.0.0.1:{cluster.workers[0].admin_port}/",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "2 of 3" in done.stdout
    assert '<span class="state passive">passive</span>' in done.stdout
    assert "/data/hot.bin" in done.stdout or "none yet" in done.stdout
