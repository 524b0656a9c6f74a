"""Reads and views of pages at hand: any range, any memory, exact counts, other ways when a page is bad."""

from __future__ import annotations

import os
import sys
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_worker import WAIT_S, FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.client_metrics import LATENCY_BOUNDS_S, ClientMetrics
from kara_cache.config import ClientConfig
from kara_cache.same_host.local_pages import RENEW_S

PAGE = 64 << 10
CONTENT = os.urandom(3 * PAGE + 777)
PATH = "/m/f"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[ScriptedWorker]:
    with ScriptedWorker({PATH: CONTENT}, unix_dir=tmp_path) as made:
        yield made


@pytest.fixture
def client(worker: ScriptedWorker) -> Iterator[CacheClient]:
    config = ClientConfig(stall_timeout_s=WAIT_S)
    with CacheClient(config, membership=FixedMembership(worker.member())) as made:
        made.read(made.info(PATH), 0, len(CONTENT))  # from here on every page is at hand
        yield made


@given(st.integers(0, len(CONTENT) + 5), st.integers(0, 40_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_short_read_is_right(client: CacheClient, start: int, length: int) -> None:
    got = bytearray(length)
    want = CONTENT[start : start + length]
    assert client.read_into(client.info(PATH), start, got) == len(want)
    assert got[: len(want)] == want


@pytest.mark.parametrize("start", [0, 4096, 5])
@pytest.mark.parametrize(
    ("length", "shape"),
    [
        pytest.param(4096, ("i", [1024]), id="as many bytes as a block, of integers"),
        pytest.param(16_384, ("i", [4096]), id="as many integers as a block has bytes"),
        pytest.param(4096, ("B", [4096, 1]), id="rows of one byte"),
        pytest.param(8192, ("B", [2, 4096]), id="rows"),
        pytest.param(4096, ("c", [4096]), id="characters"),
    ],
)
def test_memory_of_any_items_is_filled(
    client: CacheClient, worker: ScriptedWorker, start: int, length: int, shape: tuple[str, list[int]]
) -> None:
    asked, memory = len(worker.requests), bytearray(length)
    got = client.read_into(client.info(PATH), start, memoryview(memory).cast(*shape))  # type: ignore[call-overload]
    assert got == length
    assert memory == CONTENT[start : start + length]
    assert len(worker.requests) == asked + 1, "info alone"


def test_memory_that_is_no_view_is_filled(client: CacheClient) -> None:
    items = array("i", bytes(400))
    assert client.read_into(client.info(PATH), 9, items) == 400  # type: ignore[arg-type]
    assert items.tobytes() == CONTENT[9:409]


def test_memory_that_may_not_be_written_is_refused(client: CacheClient) -> None:
    with pytest.raises((TypeError, BufferError)):
        client.read_into(client.info(PATH), 9, memoryview(bytes(100)))


def test_what_is_no_range_is_refused(client: CacheClient) -> None:
    with pytest.raises(ValueError, match=PATH):
        client.read_into(client.info(PATH), -5, bytearray(10))


def test_a_page_that_the_disk_does_not_give_is_read_another_way(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    file = client.info(PATH)
    pages = list(client._local.pages.values())
    for page in pages:  # from now on reading them is an error of the kernel, as EIO is
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, page.fd)
        os.close(nothing)
    worker.cached = set()
    assert client.read(file, 10, 1000) == CONTENT[10:1010]
    assert client.read_ranges([(file, PAGE + 1, 100)]) == [CONTENT[PAGE + 1 : PAGE + 101]]
    assert client.metrics.fallbacks == {"corrupt": 2}


def test_a_page_is_asked_for_again_when_it_is_time(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    asked = worker.count("GET", "/pages")
    for page in client._local.pages.values():
        page.renew_at -= 2 * RENEW_S
    assert client.read(file, 10, 100) == CONTENT[10:110]
    assert worker.count("GET", "/pages") == asked + 1


def test_reads_and_views_of_many_threads_are_all_counted(client: CacheClient) -> None:
    file, before, done = client.info(PATH), client.metrics, threading.Event()
    client.view(file, 0, 10)
    viewed = client.metrics.reads["local"] - before.reads["local"]

    def read() -> None:
        memory = memoryview(bytearray(100))
        for at in range(2000):
            client.read_into(file, at, memory)
            client.view(file, at, 10)

    def look() -> None:
        while not done.is_set():
            client.metrics  # noqa: B018 - counts what was noted so far

    interval, threads = sys.getswitchinterval(), [threading.Thread(target=read) for _ in range(3)]
    looking = threading.Thread(target=look)
    sys.setswitchinterval(1e-5)
    try:
        for thread in (*threads, looking):
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    finally:
        done.set()
        looking.join(WAIT_S)
        sys.setswitchinterval(interval)
    after = client.metrics
    assert after.reads["local"] - before.reads["local"] == 3 * 2 * 2000 + viewed
    assert after.read_bytes["local"] - before.read_bytes["local"] == 3 * 2000 * 110 + 10 * viewed
    assert sum(after.read_latency.counts) - sum(before.read_latency.counts) == 3 * 2000
    assert after.read_latency.total_s > before.read_latency.total_s


def test_what_was_noted_falls_into_its_bucket() -> None:
    metrics = ClientMetrics()
    for seconds in (0.0, LATENCY_BOUNDS_S[0], LATENCY_BOUNDS_S[0] * 1.01, 0.3, 1000.0):
        metrics.local_seconds.append(seconds)
        metrics.local_bytes.append(10)
    metrics.fold()
    counts = metrics.snapshot().read_latency.counts
    assert (counts[0], counts[1], counts[LATENCY_BOUNDS_S.index(0.5)], counts[-1]) == (2, 1, 1, 1)
    assert sum(counts) == 5
    assert metrics.snapshot().reads["local"] == 5
    assert metrics.snapshot().read_bytes["local"] == 50
    assert (metrics.local_seconds, metrics.local_bytes) == ([], [])


def test_views_alone_hand_the_counts_in_when_it_is_time(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.view(file, 0, 10)
    client._push.due_at = 1.0  # long ago
    client._held._look_at = 0.0
    client.view(file, 0, 10)
    assert len(worker.pushed) == 1
