"""S3-FIFO: the rules of the paper on small cases, and the authors' simulator on long ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kara_worker.eviction import S3Fifo
from kara_worker.eviction.trace import (
    Request,
    cyclic,
    hit_ratio,
    mixed,
    pages,
    replay,
    shuffled,
    zipf,
)

TRACES: dict[str, list[Request]] = {
    "zipf": list(zipf(pages(3000), 20_000, seed=1)),
    "shuffled": list(shuffled(pages(1000), 6, seed=2)),
    "cyclic": list(cyclic(pages(1000), 6)),
    "mixed": list(mixed(zipf(pages(2000), 9000, seed=3), cyclic(pages(4000), 2), share=0.7, seed=4)),
}


@pytest.mark.parametrize("capacity", [50, 400])
@pytest.mark.parametrize("trace", TRACES)
def test_hits_as_often_as_libcachesim(trace: str, capacity: int) -> None:
    simulator = pytest.importorskip(
        "libcachesim", reason="libcachesim is not installed: pip install libcachesim"
    )
    theirs = _simulated(simulator, simulator.S3FIFO(capacity), TRACES[trace])
    ours = replay(S3Fifo(), capacity, TRACES[trace])
    assert hit_ratio(ours) == pytest.approx(hit_ratio(theirs), abs=0.002)


def test_a_page_used_twice_while_small_outlives_pages_used_once() -> None:
    data, policy = pages(200), S3Fifo()
    _fill(policy, data[:100])
    assert policy.evict() == data[0]
    policy.track(data[150], 1, "")
    policy.touch(data[150])
    policy.touch(data[150])
    flood = pages(500, name="flood")
    for page in flood:
        policy.track(page, 1, "")
        assert policy.evict() != data[150]


def test_one_use_is_not_enough() -> None:
    data, policy = pages(200), S3Fifo()
    _fill(policy, data[:100])
    policy.evict()
    policy.track(data[150], 1, "")
    policy.touch(data[150])
    gone = []
    for page in pages(30, name="flood"):
        policy.track(page, 1, "")
        gone.append(policy.evict())
    assert data[150] in gone


def test_a_page_that_comes_back_soon_goes_to_the_main_queue() -> None:
    data, policy = pages(200), S3Fifo()
    _fill(policy, data[:100])
    victim = policy.evict()
    assert victim is not None
    policy.track(victim, 1, "")
    gone = []
    for page in pages(60, name="flood"):
        policy.track(page, 1, "")
        gone.append(policy.evict())
    assert victim not in gone


def _fill(policy: S3Fifo, data: Sequence[Any]) -> None:
    for page in data:
        policy.track(page, 1, "")


def _simulated(simulator: Any, cache: Any, requests: Sequence[Request]) -> list[bool]:
    """`Any`: a compiled module without types."""
    request = simulator.Request()
    request.obj_size = 1
    hits = []
    for page, _ in requests:
        request.obj_id = page.index
        hits.append(bool(cache.get(request)))
    return hits
