"""Workers broken for real while they are read from: right bytes, counted under the right reason."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from main_job import PAGE, client_of, cluster_on, content, data_gets, owner, read_all, store_of
from pages_on_disk import PageOnDisk, pages_on_disk
from services import require_root

from kara_cache.cache_client import CacheClient
from kara_cache.page import HEADER_BYTES
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.rude_http_server import RudeHttpServer

DATA = content("file", 5 * PAGE + 1234)
PATH = "/web/file"
Cluster = tuple[LocalCluster, CacheClient, RudeHttpServer]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    with store_of(file=DATA) as store, cluster_on(store, tmp_path) as cluster:
        with client_of(cluster, stall_timeout_s=1.0, connect_timeout_s=1.0) as client:
            assert read_all(client, PATH) == DATA
            until_stored(cluster, -(-len(DATA) // PAGE))
            yield cluster, client, store


def until_stored(cluster: LocalCluster, pages: int) -> None:
    """Readers do not wait for the disk: a page is on SSD a moment after it was read."""
    deadline = time.monotonic() + 60
    while cluster.total("kara_worker_page_store_pages") < pages:
        assert time.monotonic() < deadline, "pages do not reach the disk"
        time.sleep(0.01)


def fallbacks(client: CacheClient) -> dict[str, int]:
    return dict(client.metrics.fallbacks)


def test_sigkill(running: Cluster) -> None:
    cluster, client, _ = running
    owner(cluster, client, PATH).kill()
    assert read_all(client, PATH) == DATA
    assert set(fallbacks(client)) <= {"refused", "reset"}
    assert fallbacks(client)


def test_sigkill_in_the_middle_of_an_open_file(running: Cluster) -> None:
    cluster, client, _ = running
    victim = owner(cluster, client, PATH)
    info = client.info(PATH)
    data = bytearray(info.size)
    for start in range(0, info.size, 100_000):
        view = memoryview(data)[start : start + 100_000]
        if start == 2_000_000:
            victim.kill()
        assert client.read_into(info, start, view) == len(view)
    assert bytes(data) == DATA
    assert set(fallbacks(client)) <= {"refused", "reset"}
    assert fallbacks(client)


def test_sigstop(running: Cluster) -> None:
    cluster, client, _ = running
    victim = owner(cluster, client, PATH)
    info = client.info(PATH)
    victim.pause()
    try:
        assert client.read(info, 0, info.size) == DATA
    finally:
        victim.resume()
    assert set(fallbacks(client)) == {"timeout"}


def test_every_worker_gone_and_no_store_of_ones_own(running: Cluster) -> None:
    cluster, client, _ = running
    info = client.info(PATH)
    for worker in cluster.workers:
        worker.kill()
    with pytest.raises(Exception, match="refused") as caught:
        client.read(info, 0, 10)
    assert type(caught.value).__name__ == "WorkerUnavailable"
    assert PATH in str(caught.value)


def test_drained_worker_answers_or_sends_elsewhere(running: Cluster) -> None:
    cluster, client, _ = running
    assert owner(cluster, client, PATH).stop() == 0
    assert read_all(client, PATH) == DATA
    assert set(fallbacks(client)) <= {"refused", "reset", "busy"}


REGIONS: dict[str, Callable[[PageOnDisk], None]] = {
    "header magic": lambda page: page.flip(page.start),
    "header file id": lambda page: page.flip(page.start + 20),
    "header index": lambda page: page.flip(page.start + 33),
    "header page sum": lambda page: page.flip(page.start + 49),
    "header length": lambda page: page.flip(page.start + 57),
    "header block sums": lambda page: page.flip(page.start + 80),
    "header checksum": lambda page: page.flip(page.header_sum + 7),
    "data first byte": lambda page: page.flip_data(0),
    "data middle": lambda page: page.flip_data(500_000),
    "data last byte": lambda page: page.flip_data(-1),
    "truncated in data": lambda page: page.cut(HEADER_BYTES + 4096),
    "truncated in header": lambda page: page.cut(100),
    "empty": lambda page: page.cut(0),
}


def everywhere(cluster: LocalCluster, damage: Callable[[PageOnDisk], None]) -> int:
    """Damages every page while no worker runs, so that none has one open; then starts them again."""
    for worker in cluster.workers:
        worker.stop()
    pages = [page for worker in cluster.workers for page in pages_on_disk(worker.page_dir)]
    for page in reversed(pages):  # what is cut off first lies behind
        damage(page)
    for worker in cluster.workers:
        worker.start()
    return len(pages)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("piece", [PAGE, 4096 * 25], ids=["whole pages", "parts of pages"])
def test_corrupt_page(tmp_path: Path, region: str, piece: int) -> None:
    with store_of(file=DATA) as store, cluster_on(store, tmp_path, workers=1) as cluster:
        with client_of(cluster) as client:
            assert read_all(client, PATH) == DATA
        assert everywhere(cluster, REGIONS[region]) == 6
        before = data_gets(store)
        with client_of(cluster) as client:
            # one worker and no store of its own: a detour leads back to the worker, which must have healed
            assert read_all(client, PATH, piece) == DATA
            assert set(fallbacks(client)) <= {"corrupt"}
        assert data_gets(store) > before
        healed = data_gets(store)
        with client_of(cluster) as client:
            assert read_all(client, PATH, piece) == DATA
            assert fallbacks(client) == {}
        assert data_gets(store) == healed
        assert cluster.total("kara_worker_corrupt_pages_total") >= 1


def swap(first: PageOnDisk, second: PageOnDisk) -> None:
    """Headers and data of two pages of one size."""
    assert first.data - first.start == second.data - second.start
    parts = [(page, page.start, page.data + page.header.length) for page in (first, second)]
    taken = [page.path.read_bytes()[start:stop] for page, start, stop in parts]
    for (page, start, _), other in zip(parts, reversed(taken), strict=True):
        raw = page.path.read_bytes()
        page.path.chmod(0o600)
        page.path.write_bytes(raw[:start] + other + raw[start + len(other) :])
        page.path.chmod(0o400)


def test_page_swapped_with_another_files(tmp_path: Path) -> None:
    other = content("other", PAGE)
    with store_of(a=DATA[:PAGE], b=other) as store, cluster_on(store, tmp_path, workers=1) as cluster:
        with client_of(cluster) as client:
            assert (read_all(client, "/web/a"), read_all(client, "/web/b")) == (DATA[:PAGE], other)
        worker = cluster.workers[0]
        worker.stop()
        first, second = pages_on_disk(worker.page_dir)
        swap(first, second)
        worker.start()
        with client_of(cluster) as client:
            assert (read_all(client, "/web/a"), read_all(client, "/web/b")) == (DATA[:PAGE], other)
        assert cluster.total('kara_worker_corrupt_pages_total{where="identity"}') == 2


def test_restart_keeps_pages_and_comes_back_elsewhere(running: Cluster) -> None:
    cluster, _, store = running
    before = data_gets(store)
    ports = {worker.port for worker in cluster.workers}
    for worker in cluster.workers:
        worker.kill()
        worker.start()
    assert ports != {worker.port for worker in cluster.workers}
    # a static list knows addresses only: a client with the new list finds the pages where they were
    with client_of(cluster) as moved:
        pages = sum(len(pages_on_disk(worker.page_dir)) for worker in cluster.workers)
        assert read_all(moved, PATH) == DATA
    assert pages == 6
    assert data_gets(store) - before <= 6


@pytest.mark.fault
def test_full_disk(tmp_path: Path) -> None:
    require_root()
    home = tmp_path / "worker-0"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", str(home)], check=True)
    try:
        with (
            store_of(file=DATA) as store,
            cluster_on(store, tmp_path, workers=1, capacity_bytes="11MiB") as cluster,
            client_of(cluster) as client,
        ):
            (home / "filler").write_bytes(bytes(9 << 20))
            for _ in range(2):
                assert read_all(client, PATH) == DATA
            assert fallbacks(client) == {}
            assert cluster.total("kara_worker_rejections_total") >= 1
            assert len(pages_on_disk(cluster.workers[0].page_dir)) < 6
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_store_that_hangs_keeps_no_other_mount_waiting(tmp_path: Path) -> None:
    """More calls than a mount has threads; the store takes connections and never answers."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "f").write_bytes(DATA)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        mounts = {"silent": f"http://127.0.0.1:{silent.getsockname()[1]}", "files": f"file://{files}"}
        with LocalCluster(1, mounts=mounts, directory=tmp_path / "cluster") as cluster:
            host, _, port = cluster.workers[0].address.rpartition(":")
            asking = [socket.create_connection((host, int(port)), 60) for _ in range(40)]
            for number, connection in enumerate(asking):
                connection.sendall(
                    f"GET /kara/v1/info?path=/silent/{number} HTTP/1.1\r\nHost: w\r\n\r\n".encode()
                )
            silent.settimeout(60)
            accepted = [silent.accept()[0] for _ in range(16)]  # as many as a mount has threads
            with client_of(cluster) as client:
                assert read_all(client, "/files/f") == DATA
                assert [info.path for info in client.list("/files")] == ["/files/f"]
                assert fallbacks(client) == {}
            for connection in [*asking, *accepted]:
                connection.close()
