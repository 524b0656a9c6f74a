"""LRU against two oracles: an OrderedDict, and libcachesim where it is installed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.page import PageId
from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.eviction.trace import Request, cyclic, mixed, pages, replay, shuffled, zipf

PAGES = pages(16)


def model(capacity: int, requests: Sequence[Request]) -> list[bool]:
    kept: OrderedDict[PageId, None] = OrderedDict()
    hits = []
    for page, _ in requests:
        hits.append(page in kept)
        kept[page] = None
        kept.move_to_end(page)
        if len(kept) > capacity:
            kept.popitem(last=False)
    return hits


@given(st.integers(1, 12), st.lists(st.sampled_from(PAGES), max_size=200))
def test_equals_an_ordered_dict_request_for_request(capacity: int, asked: list[PageId]) -> None:
    requests = [(page, "m") for page in asked]
    assert replay(LeastRecentlyUsed(), capacity, requests) == model(capacity, requests)


TRACES: dict[str, list[Request]] = {
    "zipf": list(zipf(pages(3000), 20_000, seed=1)),
    "shuffled": list(shuffled(pages(1000), 5, seed=2)),
    "cyclic": list(cyclic(pages(1000), 5)),
    "mixed": list(mixed(zipf(pages(2000), 9000, seed=3), cyclic(pages(4000), 2), share=0.7, seed=4)),
}


@pytest.mark.parametrize("capacity", [50, 400])
@pytest.mark.parametrize("trace", TRACES)
def test_equals_libcachesim_request_for_request(trace: str, capacity: int) -> None:
    simulator = pytest.importorskip(
        "libcachesim", reason="libcachesim is not installed: pip install libcachesim"
    )
    cache, request = simulator.LRU(capacity), simulator.Request()
    request.obj_size = 1
    theirs = []
    for page, _ in TRACES[trace]:
        request.obj_id = page.index
        theirs.append(bool(cache.get(request)))
    assert replay(LeastRecentlyUsed(), capacity, TRACES[trace]) == theirs
