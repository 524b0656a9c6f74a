"""Load jobs while processes die: the job ends, the receipt is true, nothing is fetched twice for nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import etcd_servers
import pytest
from loading import PAGE, WAIT_S, Place, a_data_set, client_of, load_place, wait_for
from pages_on_disk import pages_on_disk

from kara_cache.jobs import load_progress, submit_load
from kara_cache.load_job import LoadJob, LoadOptions, LoadState
from kara_worker.testing.cluster import WorkerProcess
from kara_worker.testing.etcd_cluster import EtcdCluster

pytestmark = [
    pytest.mark.oss,
    pytest.mark.etcd,
    pytest.mark.leaves_running("connections of the store"),
]
LARGE = 512 << 10
FILES = a_data_set("faults", small=100, large=LARGE)
SIZE = sum(map(len, FILES.values()))
THREADS = 2  # of each worker: so many requests may be in flight when a process dies
IN_FLIGHT = 3 * THREADS * 3 * PAGE + LARGE  # a request is for at most 3 pages, but one for the large file
SLOW = LoadOptions(bandwidth_bytes_per_s=SIZE // 6)  # three workers take two seconds


@contextmanager
def three_workers(directory: Path, **settings: object) -> Iterator[Place]:
    settings = {"lease_ttl_s": 2, "load_threads": THREADS, **settings}
    with load_place(FILES, directory, **settings) as place:
        yield place


def half_way(place: Place) -> LoadJob:
    """A job of which something is in the cache and something is not."""
    job = submit_load(place.client, "/data", SLOW)
    return wait_for(place.client, job.id, lambda job: job.progress.bytes_fetched > SIZE // 8)


def coordinator(place: Place, job: LoadJob) -> WorkerProcess:
    return place.cluster.worker(job.coordinator)


def stored_bytes(worker: WorkerProcess) -> int:
    """On its disk, at least."""
    return sum(page.header.length for page in pages_on_disk(worker.page_dir))


def ended(place: Place, job: LoadJob) -> LoadJob:
    """Whoever has it now, the job of this id comes to its end; a client finds somebody to ask."""
    with client_of(place.cluster, timeout_s=30.0) as client:
        return wait_for(client, job.id, lambda job: job.state.final)


def test_the_coordinator_is_killed(tmp_path: Path) -> None:
    with etcd_servers.server() as etcd, three_workers(tmp_path, etcd=etcd) as place:
        job = half_way(place)
        first = coordinator(place, job)
        first.kill()
        lost = stored_bytes(first)
        job = ended(place, job)
        assert place.data_bytes() <= SIZE + lost + IN_FLIGHT
        assert job.coordinator != first.id
        assert place.cluster.total("kara_load_takeovers_total") == 1
        place.check_exact(job)


def fetching(worker: WorkerProcess) -> list[int]:
    """Its processes that fetch."""
    lists = [path.read_text() for path in Path(f"/proc/{worker.pid}/task").glob("*/children")]
    found = [int(child) for text in lists for child in text.split()]
    return [child for child in found if b"kara_worker.fetch" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_the_fetching_process_is_killed(tmp_path: Path) -> None:
    with load_place(FILES, tmp_path, workers=1, load_threads=THREADS) as place:
        job = submit_load(place.client, "/data", LoadOptions(bandwidth_bytes_per_s=SIZE // 4))
        wait_for(place.client, job.id, lambda job: job.progress.bytes_fetched > SIZE // 8)
        (pid,) = fetching(place.cluster.workers[0])
        os.kill(pid, signal.SIGKILL)
        job = ended(place, job)
        assert place.data_bytes() <= SIZE + IN_FLIGHT
        place.check_exact(job)


@pytest.mark.slow
def test_the_coordinator_is_killed_and_comes_back(tmp_path: Path) -> None:
    with etcd_servers.server() as etcd, three_workers(tmp_path, etcd=etcd, lease_ttl_s=10) as place:
        job = half_way(place)
        first = coordinator(place, job)
        first.kill()
        first.start()
        job = ended(place, job)
        assert place.data_bytes() <= SIZE + IN_FLIGHT
        receipt = job.receipt
        assert receipt is not None
        assert receipt.bytes_fetched + IN_FLIGHT >= SIZE  # what was in flight may have gone unreported
        assert receipt.bytes_fetched <= SIZE + IN_FLIGHT
        place.check_exact(job)


@pytest.mark.slow
def test_another_worker_is_killed(tmp_path: Path) -> None:
    with etcd_servers.server() as etcd, three_workers(tmp_path, etcd=etcd) as place:
        job = half_way(place)
        other = next(worker for worker in place.cluster.workers if worker.id != job.coordinator)
        other.kill()
        lost = stored_bytes(other)
        ends = ended(place, job)
        assert place.data_bytes() <= SIZE + lost + IN_FLIGHT
        assert ends.coordinator == job.coordinator
        assert place.cluster.total("kara_load_takeovers_total") == 0
        place.check_exact(ends)


def test_the_leader_of_etcd_is_killed(tmp_path: Path) -> None:
    with EtcdCluster(binary=etcd_servers.binary("installed")) as etcd:
        hosts = [url.removeprefix("http://") for url in etcd.urls]
        with three_workers(tmp_path, etcd=etcd.members[0], etcd_hosts=hosts, lease_ttl_s=10) as place:
            job = half_way(place)
            leader = next(member for member in etcd.members if is_leader(member))
            leader.kill()
            job = ended(Place(place.cluster, place.oss, place.client, place.files), job)
            assert place.data_bytes() <= SIZE + IN_FLIGHT
            place.check_exact(job)


def is_leader(member: object) -> bool:
    from kara_cache.membership.etcd import EtcdClient

    client = EtcdClient(str(getattr(member, "url")))  # noqa: B009
    status = client.call("/v3/maintenance/status", {})
    client.close()
    return bool(status["leader"] == status["header"]["member_id"])


@pytest.mark.slow
def test_everything_is_restarted(tmp_path: Path) -> None:
    with (
        etcd_servers.server() as etcd,
        three_workers(tmp_path, etcd=etcd, lease_ttl_s=15) as place,  # restarts may take that and 20 s more
    ):
        job = half_way(place)
        for worker in place.cluster.workers:
            worker.kill()
        etcd.kill()
        etcd.start()
        for worker in place.cluster.workers:
            worker.start()
        job = ended(place, job)
        assert place.data_bytes() <= SIZE + IN_FLIGHT
        place.check_exact(job)


@pytest.mark.slow
def test_a_worker_that_drains_hands_its_job_on(tmp_path: Path) -> None:
    with etcd_servers.server() as etcd, three_workers(tmp_path, etcd=etcd) as place:
        job = half_way(place)
        first = coordinator(place, job)
        assert first.stop() == 0
        next_one = wait_for(place.client, job.id, lambda job: job.coordinator != first.id)
        assert not next_one.state.final or next_one.state is LoadState.SUCCEEDED
        place.check_exact(ended(place, job))


@pytest.mark.slow
def test_a_coordinator_that_was_paused_finds_another_at_its_job(tmp_path: Path) -> None:
    with etcd_servers.server() as etcd, three_workers(tmp_path, etcd=etcd, lease_ttl_s=10) as place:
        job = half_way(place)
        first = coordinator(place, job)
        first.pause()
        try:
            wait_for(place.client, job.id, lambda job: job.coordinator != first.id)
        finally:
            first.resume()
        job = ended(place, job)
        assert job.coordinator != first.id
        place.check_exact(job)
        deadline = time.monotonic() + WAIT_S
        while "taken over from us" not in first.log() and "has it now" not in first.log():
            assert time.monotonic() < deadline, first.log()
            time.sleep(0.05)
        assert load_progress(place.client, "/data") == job


@pytest.mark.slow
def test_etcd_is_away_for_a_while(tmp_path: Path) -> None:
    """Running jobs go on; their end is told when it can be written down."""
    with (
        etcd_servers.server() as etcd,
        three_workers(tmp_path, etcd=etcd, lease_ttl_s=10) as place,
    ):
        job = half_way(place)
        etcd.kill()
        deadline = time.monotonic() + WAIT_S
        while place.cluster.total("kara_load_fetched_bytes_total") < SIZE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        etcd.start()
        job = ended(place, job)
        assert place.data_bytes() == SIZE
        place.check_exact(job)
