"""Load jobs on real workers with a real etcd and an OSS store: what is there at the end, and who is told."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
from loading import PAGE, WAIT_S, Place, a_data_set, client_of, load_place, pages_of, wait_for
from pages_on_disk import pages_on_disk

from kara_cache.errors import AccessDenied
from kara_cache.jobs import (
    free,
    list_loads,
    load_progress,
    load_receipt,
    stop_load,
    submit_load,
    wait_load,
)
from kara_cache.load_job import LoadOptions, LoadState, job_document
from kara_cache.token import Claims, Verb, mint
from kara_worker.testing.oss_faults import Fault

pytestmark = [
    pytest.mark.oss,
    pytest.mark.etcd,
    pytest.mark.leaves_running("connections of the module's store"),
]
FILES = a_data_set("load", small=60, large=70 << 20)  # the large one has two stripes


@pytest.fixture(scope="module")
def shared() -> Iterator[Place]:
    with etcd_servers.server() as etcd, load_place(FILES, etcd=etcd) as place:
        yield place


@pytest.fixture
def place(shared: Place) -> Place:
    """Nothing cached, nothing logged."""
    free(shared.client, "/data", recursive=True)
    shared.oss.faults.clear()
    shared.oss.requests.clear()
    return shared


def test_every_page_is_there_and_the_receipt_says_so(place: Place) -> None:
    job = submit_load(place.client, "/data")
    assert (job.path, job.state.final, job.receipt) == ("/data", False, None)
    job = place.wait(job)
    assert place.data_bytes() == place.size
    receipt = job.receipt
    assert receipt is not None
    assert receipt.bytes_fetched == place.size
    assert receipt.store_requests == len(place.oss.requests.data_gets())
    assert (job.progress.files, job.progress.files_verified) == (len(FILES), len(FILES))
    assert (job.progress.pages_fetched, job.progress.pages_skipped) == (place.pages, 0)
    place.check_exact(job)
    assert load_receipt(place.client, "/data") == receipt


def test_what_is_there_is_not_fetched_again_unless_that_is_asked_for(place: Place) -> None:
    place.check_exact(place.wait(submit_load(place.client, "/data")))
    place.oss.requests.clear()
    second = place.wait(submit_load(place.client, "/data"))
    assert place.oss.requests.data_gets() == []
    assert (second.progress.pages_skipped, second.progress.pages_fetched) == (place.pages, 0)
    place.check_exact(second)
    third = place.wait(submit_load(place.client, "/data", LoadOptions(skip_if_cached=False)))
    assert third.receipt is not None
    assert third.receipt.bytes_fetched == place.size
    place.check_exact(third)


def test_any_worker_answers_for_any_job(place: Place) -> None:
    job = place.wait(submit_load(place.client, "/data/0"))
    for worker in place.cluster.workers:
        with client_of(place.cluster, etcd_hosts="", worker_hosts=worker.address) as client:
            assert load_progress(client, job.id) == load_progress(client, "/data/0") == job
            assert job in list_loads(client)
            with pytest.raises(FileNotFoundError, match="no load job"):
                load_progress(client, "/data/never")
            with pytest.raises(FileNotFoundError, match="no load job"):
                stop_load(client, "0" * 32)


def test_one_job_for_a_path_at_a_time_stopped_from_anywhere(place: Place) -> None:
    slow = LoadOptions(bandwidth_bytes_per_s=1 << 20)
    job = submit_load(place.client, "/data", slow)
    for worker in place.cluster.workers:
        with client_of(place.cluster, etcd_hosts="", worker_hosts=worker.address) as client:
            assert submit_load(client, "/data").id == job.id
    running = wait_for(place.client, job.id, lambda job: job.progress.bytes_fetched > 0)
    assert (running.state, running.options) == (LoadState.RUNNING, slow)
    other = next(w for w in place.cluster.workers if w.id != running.coordinator)
    with client_of(place.cluster, etcd_hosts="", worker_hosts=other.address) as client:
        stop_load(client, "/data")
    stopped = place.wait(job)
    assert (stopped.state, stopped.receipt) == (LoadState.STOPPED, None)
    assert 0 < stopped.progress.bytes < place.size
    fetched = place.data_bytes()
    assert stop_load(place.client, "/data") == load_progress(place.client, "/data")
    again = submit_load(place.client, "/data")
    assert again.id != job.id
    assert place.wait(again).state is LoadState.SUCCEEDED
    # in flight when it was stopped: on each worker at most what its limit let begin
    assert place.data_bytes() <= place.size + fetched
    place.check_exact(load_progress(place.client, again.id))


def test_a_stopped_job_fetches_nothing_more(place: Place) -> None:
    job = submit_load(place.client, "/data", LoadOptions(requests_per_s=5.0))
    wait_for(place.client, job.id, lambda job: job.state is LoadState.RUNNING)
    stop_load(place.client, job.id)
    place.wait(job)
    for worker in place.cluster.workers:
        deadline = time.monotonic() + WAIT_S
        while worker.metrics()["kara_worker_fills_running"] and time.monotonic() < deadline:
            time.sleep(0.02)
    count = len(place.oss.requests.data_gets())
    assert place.wait(submit_load(place.client, "/data/1")).state is LoadState.SUCCEEDED  # takes a while
    gets = [request for request in place.oss.requests.data_gets()[count:] if not request.key.startswith("1/")]
    assert gets == []


def test_copies_on_as_many_workers_as_asked_for(place: Place) -> None:
    job = place.wait(submit_load(place.client, "/data", LoadOptions(replicas=2)))
    assert place.data_bytes() == place.size  # the first copy; the others are made from it
    assert job.receipt is not None
    assert job.receipt.bytes_fetched == place.size
    assert job.receipt.store_requests == len(place.oss.requests.data_gets())
    place.check_exact(job, copies=2)
    document = place.client.explain("/data/large.bin")
    for stripe in document["owners"]:
        holders = [w["id"] for w in document["workers"] if w["cached"]]
        assert set(stripe["workers"][:2]) <= set(holders)


def test_a_copy_that_cannot_be_had_from_the_first_owner_is_fetched(place: Place) -> None:
    """What the first owner has is damaged: nothing wrong is passed on, and the store is asked."""
    path = next(f"/data/{name}" for name, data in FILES.items() if PAGE < len(data) < 3 * PAGE)
    size = place.client.info(path).size
    place.wait(submit_load(place.client, path))
    (stripe,) = place.client.explain(path)["owners"]
    first, second = (place.cluster.worker(worker) for worker in stripe["workers"][:2])
    for page in pages_on_disk(first.page_dir):
        page.flip_data(-1)
    place.oss.requests.clear()
    job = place.wait(submit_load(place.client, path, LoadOptions(replicas=2)))
    assert job.receipt is not None
    assert (job.receipt.pages_present, place.data_bytes()) == (2 * pages_of(size), size)
    assert len(pages_on_disk(second.page_dir)) == pages_of(size)


def test_content_is_read_back_and_a_wrong_page_is_replaced(place: Place) -> None:
    place.check_exact(place.wait(submit_load(place.client, "/data")))
    pages = [page for worker in place.cluster.workers for page in pages_on_disk(worker.page_dir)]
    next(page for page in pages if page.header.length > 1000).flip_data(10)
    unread = place.wait(submit_load(place.client, "/data"))
    assert unread.progress.pages_fetched == 0  # found by its name, which is what was asked for
    job = place.wait(submit_load(place.client, "/data", LoadOptions(verify=True)))
    assert job.receipt is not None
    assert (job.progress.pages_fetched, job.receipt.content_verified) == (1, True)
    place.check_exact(job)


def test_a_filter_chooses_files(place: Place) -> None:
    job = place.wait(submit_load(place.client, "/data", LoadOptions(file_filter=r"^1/f\d+[05]$")))
    chosen = {name: data for name, data in FILES.items() if name.startswith("1/") and name[-1] in "05"}
    assert job.receipt is not None
    assert (job.state, job.receipt.files) == (LoadState.SUCCEEDED, len(chosen))
    assert {request.key for request in place.oss.requests.data_gets()} == {n for n, d in chosen.items() if d}
    place.check_served(chosen)


def test_counting_first_makes_totals_known_from_the_beginning(place: Place) -> None:
    options = LoadOptions(partial_listing=False, bandwidth_bytes_per_s=1 << 20)
    job = submit_load(place.client, "/data", options)
    running = wait_for(place.client, job.id, lambda job: job.progress.bytes_fetched > 0)
    progress = running.progress
    assert progress.listing_complete
    assert (progress.files_listed, progress.bytes_listed) == (len(FILES), place.size)
    assert 0 <= progress.fraction < 1
    stop_load(place.client, job.id)
    place.wait(job)


def test_a_single_file_and_what_is_not_there(place: Place) -> None:
    one = place.wait(submit_load(place.client, "/data/large.bin"))
    assert one.receipt is not None
    assert (one.state, one.receipt.files) == (LoadState.SUCCEEDED, 1)
    assert one.receipt.pages_present == pages_of(len(FILES["large.bin"]))
    empty = place.wait(submit_load(place.client, "/data/0/empty"))
    assert empty.receipt is not None
    assert (empty.state, empty.receipt.files, empty.receipt.pages_expected) == (LoadState.SUCCEEDED, 1, 0)
    missing = place.wait(submit_load(place.client, "/data/nowhere"))
    assert missing.state is LoadState.FAILED
    assert "/data/nowhere cannot be listed" in missing.message
    with pytest.raises(FileNotFoundError, match="no mount"):
        submit_load(place.client, "/other/x")
    with pytest.raises(ValueError, match="segment"):
        submit_load(place.client, "/data/../x")


def test_what_vanishes_is_forbidden_or_changes_is_named(place: Place) -> None:
    gone, closed, new = sorted(name for name, data in FILES.items() if data)[:3]
    pages = {name: pages_of(len(FILES[name])) for name in (gone, closed, new)}
    for code, status, name in (("NoSuchKey", 404, gone), ("AccessDenied", 403, closed)):
        place.oss.faults.add(Fault.error(status, code), times=10_000, method="GET", key=name)
    place.oss.faults.add(Fault.error(404, "NoSuchKey"), times=10_000, method="HEAD", key=gone)
    place.oss.faults.add(Fault.error(412, "PreconditionFailed"), times=1, method="GET", key=new)
    job = place.wait(submit_load(place.client, "/data"))
    receipt = job.receipt
    assert receipt is not None
    assert job.state is LoadState.FAILED
    assert set(receipt.failed) == {"not_found", "forbidden", "changed"}
    assert receipt.failed["forbidden"] == pages[closed]
    assert receipt.samples["forbidden"] == [f"/data/{closed}"]
    assert receipt.samples["not_found"] == [f"/data/{gone}"]
    assert receipt.samples["changed"] == [f"/data/{new}"]
    assert receipt.pages_expected == receipt.pages_present + sum(receipt.failed.values())
    assert "changed" in job.message
    place.oss.faults.clear()
    mended = place.wait(submit_load(place.client, "/data"))
    assert mended.progress.pages_fetched == pages[gone] + pages[closed]
    place.check_exact(mended)


def test_a_store_that_hiccups_is_asked_again(place: Place) -> None:
    names = sorted(name for name, data in FILES.items() if data)[:5]
    for name in names:  # more often than the store's adapter itself tries
        place.oss.faults.add(Fault.error(503, "ServiceUnavailable"), times=6, method="GET", key=name)
    job = place.wait(submit_load(place.client, "/data"))
    assert job.progress.retries >= len(names)
    place.check_exact(job)


def test_jobs_are_counted(place: Place) -> None:
    before = place.cluster.total("kara_load_jobs_total")
    fetched = place.cluster.total("kara_load_fetched_bytes_total")
    place.wait(submit_load(place.client, "/data"))
    deadline = time.monotonic() + WAIT_S
    while place.cluster.total("kara_load_jobs_total") == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert place.cluster.total("kara_load_jobs_total") == before + 1
    assert place.cluster.total("kara_load_fetched_bytes_total") == fetched + place.size


# -- clusters of their own ---------------------------------------------------------------------------


SMALL = a_data_set("small", small=30)


def test_a_static_list_of_workers_that_know_each_other(tmp_path: Path) -> None:
    with load_place(SMALL, tmp_path, peers=True) as place:
        job = submit_load(place.client, "/data")
        for worker in place.cluster.workers:
            with client_of(place.cluster, worker_hosts=worker.address) as client:
                assert wait_load(client, "/data", timeout_s=WAIT_S).id == job.id
                assert [found.id for found in list_loads(client)] == [job.id]
        place.check_exact(load_progress(place.client, job.id))
        assert all(pages_on_disk(worker.page_dir) for worker in place.cluster.workers)


def test_jobs_without_etcd_outlive_their_worker(tmp_path: Path) -> None:
    with load_place(SMALL, tmp_path, workers=1, peers=True) as place:
        (worker,) = place.cluster.workers
        slow = LoadOptions(bandwidth_bytes_per_s=1_500_000)
        job = submit_load(place.client, "/data", slow)
        wait_for(place.client, job.id, lambda job: job.progress.pages_fetched > 3)
        worker.kill()
        worker.start()
        place.check_exact(place.wait(job))
        worker.restart()
        assert load_progress(place.client, "/data").state is LoadState.SUCCEEDED


def test_a_cache_that_is_too_small_says_what_did_not_fit(tmp_path: Path) -> None:
    with load_place(SMALL, tmp_path, workers=1, capacity_bytes=10 * (PAGE + 4096)) as place:
        job = place.wait(submit_load(place.client, "/data"))
        receipt = job.receipt
        assert receipt is not None
        assert job.state is LoadState.FAILED
        assert set(receipt.failed) == {"no_room"}
        assert receipt.pages_expected == place.pages
        assert receipt.pages_present >= 10
        fetched = place.data_bytes()
        assert fetched <= 12 * PAGE  # what has no place is not fetched
        # and what was there before gives way to what is asked for by name
        wanted = max(SMALL, key=lambda name: len(SMALL[name]))
        assert place.wait(submit_load(place.client, f"/data/{wanted}")).state is LoadState.SUCCEEDED
        place.check_served({wanted: SMALL[wanted]})


def test_metadata_only(tmp_path: Path) -> None:
    mount = {"freshness": "max_age=1h"}
    with load_place(SMALL, tmp_path, workers=2, peers=True, mount=mount) as place:
        job = place.wait(submit_load(place.client, "/data", LoadOptions(metadata_only=True)))
        assert job.receipt is not None
        assert (job.state, job.receipt.files) == (LoadState.SUCCEEDED, len(SMALL))
        assert job.receipt.pages_expected == 0
        place.oss.requests.clear()
        for name, data in SMALL.items():
            assert place.client.info(f"/data/{name}").size == len(data)
        assert place.oss.requests.all() == []


def test_tokens_say_who_may_load(tmp_path: Path) -> None:
    secret = secrets.token_hex(16)
    settings: dict[str, Any] = {"secret": "env:LOAD_SECRET", "environment": {"LOAD_SECRET": secret}}

    def token(verb: Verb, prefix: str) -> str:
        return mint(secret.encode(), Claims(frozenset({verb}), prefix, int(time.time()) + 600, "t"))

    with (
        etcd_servers.server() as etcd,
        load_place(SMALL, tmp_path, workers=2, etcd=etcd, **settings) as place,
        client_of(place.cluster, secret=secret) as operator,
        client_of(place.cluster, token=token("read", "/data/0")) as reader,
        client_of(place.cluster, token=token("admin", "/data/1")) as elsewhere,
    ):
        with pytest.raises(AccessDenied):
            submit_load(place.client, "/data")
        with pytest.raises(AccessDenied, match="wanted admin"):
            submit_load(reader, "/data/0")
        with pytest.raises(AccessDenied, match="wanted admin"):
            submit_load(elsewhere, "/data")
        job = submit_load(operator, "/data/0")
        assert wait_load(operator, job.id, timeout_s=WAIT_S).state is LoadState.SUCCEEDED
        assert load_progress(reader, job.id).id == job.id
        assert [found.id for found in list_loads(reader)] == [job.id]
        assert list_loads(elsewhere) == []
        with pytest.raises(AccessDenied):
            load_progress(elsewhere, job.id)
        with pytest.raises(AccessDenied):
            stop_load(reader, job.id)
        with pytest.raises(AccessDenied):
            reader.ask("DELETE", "/load", "/", ("job", job.id))
        assert job_document(load_progress(operator, job.id))["state"] == "SUCCEEDED"
