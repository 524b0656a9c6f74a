"""etcd is not on the way of a read: stopped, paused, restarted or never there, reads go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import etcd_servers
import pytest
from main_job import PAGE, client_of, cluster_on, content, owner, read_all, store_of

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.membership.configured import membership_of
from kara_cache.membership.etcd_membership import EtcdMembership
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.etcd_server import EtcdServer

DATA = content("file", 3 * PAGE + 5)
PATH = "/web/file"


class WatchedClient(CacheClient):
    """A client whose membership a test can wait for."""

    members: EtcdMembership


Running = tuple[EtcdServer, LocalCluster, WatchedClient]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with (
        etcd_servers.server() as etcd,
        store_of(file=DATA) as store,
        cluster_on(store, tmp_path, etcd=etcd, lease_ttl_s=2, passive_grace_s=3600) as cluster,
    ):
        config = ClientConfig.load(env={}, local_reads=False, stall_timeout_s=1.0, **cluster.client_options)
        members = membership_of(config)
        assert isinstance(members, EtcdMembership)
        client = WatchedClient(config, membership=members)
        client.members = members
        try:
            wait_for_workers(client, 3)
            assert read_all(client, PATH) == DATA
            yield etcd, cluster, client
        finally:
            client.close()
            members.close()


def wait_for_workers(client: WatchedClient, count: int) -> None:
    client.members.wait_for(lambda view: sum(w.state.value == "active" for w in view.workers) == count, 20)


def test_stopped(running: Running) -> None:
    etcd, cluster, client = running
    etcd.kill()
    assert read_all(client, PATH) == DATA
    owner(cluster, client, PATH).kill()
    assert read_all(client, PATH) == DATA


def test_paused_and_resumed(running: Running) -> None:
    etcd, _, client = running
    etcd.pause()
    try:
        assert read_all(client, PATH) == DATA
    finally:
        etcd.resume()
    wait_for_workers(client, 3)
    assert read_all(client, PATH) == DATA


def test_restarted_and_a_worker_moved_meanwhile(running: Running) -> None:
    etcd, cluster, client = running
    victim = owner(cluster, client, PATH)
    before = victim.id
    etcd.kill()
    victim.kill()
    victim.start()  # other ports, and nobody to tell
    assert victim.id == before
    assert read_all(client, PATH) == DATA
    etcd.restart()
    address = victim.port
    client.members.wait_for(lambda view: any(w.port == address for w in view.workers), 30)
    wait_for_workers(client, 3)
    assert owner(cluster, client, PATH).id == before
    assert read_all(client, PATH) == DATA


def test_client_that_starts_while_etcd_is_down(running: Running) -> None:
    etcd, cluster, _ = running
    etcd.kill()
    with client_of(cluster, connect_timeout_s=0.5) as late:
        assert late.workers().source == "disk"
        assert read_all(late, PATH) == DATA


def test_worker_that_starts_while_etcd_is_down(running: Running) -> None:
    etcd, cluster, client = running
    etcd.kill()
    for worker in cluster.workers:
        worker.kill()
        worker.start()
    etcd.restart()
    ports = {worker.port for worker in cluster.workers}
    client.members.wait_for(lambda view: {w.port for w in view.workers} == ports, 30)
    wait_for_workers(client, 3)
    assert read_all(client, PATH) == DATA


def test_lost_worker_is_passive_and_keeps_its_place(running: Running) -> None:
    _, cluster, client = running
    victim = owner(cluster, client, PATH)
    victim.kill()
    view = client.members.wait_for(
        lambda view: any(w.id == victim.id and w.state.value == "passive" for w in view.workers), 20
    )
    assert len(view.workers) == 3
    assert read_all(client, PATH) == DATA
    victim.start()
    wait_for_workers(client, 3)
    assert owner(cluster, client, PATH).id == victim.id


def test_a_copied_page_directory_does_not_serve_twice(running: Running, tmp_path: Path) -> None:
    _, cluster, client = running
    original = cluster.workers[0]
    copy = tmp_path / "copy"
    shutil.copytree(original.page_dir, copy / "pages")
    config = original.directory / "worker.toml"
    text = config.read_text().replace(str(original.page_dir), str(copy / "pages"))
    (copy / "worker.toml").write_text(text.replace("kara-s-", "kara-c-"))
    newcomer = WorkerProcess(copy, ["--config", str(copy / "worker.toml")], {})
    try:
        newcomer.start()
        assert newcomer.wait(60) == 1
    finally:
        newcomer.kill()
    assert f"127.0.0.1:{original.port}" in newcomer.log()
    assert read_all(client, PATH) == DATA
    assert original.alive
