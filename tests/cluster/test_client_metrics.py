"""What a client counts, and how the counts reach a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scripted_worker as script
from scripted_worker import FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.client_metrics import LATENCY_BOUNDS_S, ClientCounts, ClientMetrics
from kara_cache.config import ClientConfig
from kara_cache.errors import WorkerUnavailable
from kara_cache.metrics_push import INTERVAL_S, MetricsPush

FAR_S = 30.0
CONTENT = os.urandom(200_000)
PATH = "/m/f"


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    with ScriptedWorker({PATH: CONTENT}) as made:
        yield made


@pytest.fixture
def client(worker: ScriptedWorker) -> Iterator[CacheClient]:
    with CacheClient(
        ClientConfig(stall_timeout_s=FAR_S), membership=FixedMembership(worker.member())
    ) as made:
        yield made


def test_identities_hold(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    worker.plan("GET", "/read", script.fill(1000), script.flip(1), script.flip(1))
    client.read(file, 0, 100)
    with pytest.raises(WorkerUnavailable, match="checksum"):
        client.read(file, 0, 100)
    for start in (0, 5, 100):
        client.read(file, start, 1000)
    client.read_ranges([(file, 0, 10)] * 7)
    counts = client.metrics
    assert counts.reads == {"worker": 11, "local": 0, "store": 0, "error": 1}
    assert counts.worker_reads == {"hit": 3, "fill": 1}
    assert counts.read_bytes["worker"] == 100 + 3000 + 70
    assert sum(counts.read_latency.counts) == 5
    assert sum(counts.batch_latency.counts) == 1


def test_latency_falls_into_its_bucket() -> None:
    metrics = ClientMetrics()
    for seconds in (0.00001, 0.00005, 0.0003, 61.0):
        metrics.local_read(1, seconds)
    counts = metrics.snapshot().read_latency.counts
    assert len(counts) == len(LATENCY_BOUNDS_S) + 1
    assert (counts[0], counts[LATENCY_BOUNDS_S.index(0.0005)], counts[-1]) == (2, 1, 1)


def test_a_document_holds_what_changed_and_nothing_else() -> None:
    metrics = ClientMetrics()
    assert metrics.snapshot().since(ClientCounts()) == {}
    metrics.local_read(10, 0.001)
    first = metrics.snapshot()
    document = first.since(ClientCounts())
    assert document["counters"] == {"reads": {"local": 1}, "read_bytes": {"local": 10}}
    assert set(document["latency"]) == {"read"}
    metrics.fallback("reset")
    assert metrics.snapshot().since(first) == {"counters": {"fallbacks": {"reset": 1}}, "latency": {}}


def test_deltas_are_handed_in_once(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.read(file, 0, 10)
    assert client.flush_metrics()
    client.read(file, 0, 10)
    client.read(file, 0, 10)
    assert client.flush_metrics()
    assert client.flush_metrics()
    reads = [document["counters"]["reads"] for document in worker.pushed]
    assert reads == [{"worker": 1}, {"worker": 2}]


def test_what_no_worker_took_is_handed_in_later(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.read(file, 0, 10)
    worker.plan("POST", "/client-metrics", script.fail(ValueError("what is this?")))
    assert not client.flush_metrics()
    client.read(file, 0, 10)
    assert client.flush_metrics()
    assert worker.pushed[0]["counters"]["reads"] == {"worker": 2}


def test_suspects_are_not_bothered_with_counts(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.read(file, 0, 10)
    client._cluster.suspects.failed(worker.id)
    assert not client.flush_metrics()
    assert worker.count("POST", "/client-metrics") == 0


def test_reads_hand_the_counts_in_when_it_is_time(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.read(file, 0, 10)
    assert worker.pushed == []
    due = client._push.due_at
    client._push.due_at = 1.0  # long ago
    client.read(file, 0, 10)
    assert len(worker.pushed) == 1
    assert due + INTERVAL_S > client._push.due_at > due - INTERVAL_S


def test_close_hands_in_the_rest(worker: ScriptedWorker) -> None:
    client = CacheClient(ClientConfig(), membership=FixedMembership(worker.member()))
    client.read(client.info(PATH), 0, 10)
    client.close()
    client.close()
    assert [document["counters"]["reads"] for document in worker.pushed] == [{"worker": 1}]


def test_a_client_that_counted_nothing_says_nothing(worker: ScriptedWorker) -> None:
    with CacheClient(ClientConfig(), membership=FixedMembership(worker.member())) as client:
        client.info(PATH)
    assert worker.count("POST", "/client-metrics") == 0


def test_a_process_that_ends_without_close_hands_in_its_counts(
    worker: ScriptedWorker, tmp_path: Path
) -> None:
    program = f"""
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
client = CacheClient(ClientConfig(worker_hosts=("127.0.0.1:{worker.port}",)))
reader = client.open_reader(client.info({PATH!r}))
for at in range(0, 200_000, 1000):
    reader.read_at(at, 1000)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program],
        capture_output=True,
        timeout=FAR_S,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert sum(document["counters"]["reads"]["worker"] for document in worker.pushed) >= 1


def test_one_thread_sends_while_others_go_on(client: CacheClient, worker: ScriptedWorker) -> None:
    push: MetricsPush = client._push
    client.read(client.info(PATH), 0, 10)
    with push._sending:
        assert not push.push()
    assert push.push()
