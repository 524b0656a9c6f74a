"""The guard on traces of training and serving: hit ratios beside those of the best that can be known."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import pytest

from kara_cache.page import PageId
from kara_worker.eviction import Guard, LeastRecentlyUsed, S3Fifo
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

N = 1000
INNER = pytest.mark.parametrize("inner", [LeastRecentlyUsed, S3Fifo])
SCANS = {
    "cyclic": lambda data, epochs: cyclic(data, epochs),
    "shuffled": lambda data, epochs: shuffled(data, epochs, seed=7),
}


@INNER
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_epochs_larger_than_the_cache_hit_what_fits(inner: type, scan: str, share: float) -> None:
    hits = replay(Guard(inner), int(share * N), SCANS[scan](pages(N), 8))
    assert hit_ratio(hits, after=2 * N) >= share * 0.9


def test_without_the_guard_the_same_scan_hits_nothing() -> None:
    hits = replay(LeastRecentlyUsed(), N // 2, cyclic(pages(N), 6))
    assert not any(hits)


@pytest.mark.parametrize("scan", SCANS)
def test_of_every_epoch_only_what_does_not_fit_is_fetched(scan: str) -> None:
    """The egress floor, (1 - c) of the data an epoch, is reached within 2 %."""
    hits = replay(Guard(S3Fifo), N // 2, SCANS[scan](pages(N), 10))
    for epoch in range(2, 10):
        fetched = N - sum(hits[epoch * N : (epoch + 1) * N])
        assert fetched <= 1.02 * N / 2


@INNER
def test_popular_pages_are_found_as_by_s3_fifo(inner: type) -> None:
    trace = list(zipf(pages(5 * N), 25 * N, seed=1))
    guarded = hit_ratio(replay(Guard(inner), N // 2, trace), after=3 * N)
    assert guarded >= 0.9 * hit_ratio(replay(S3Fifo(), N // 2, trace), after=3 * N)


@INNER
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("second_group", ["train", "other"])
def test_a_change_of_data_set_costs_one_epoch(inner: type, scan: str, second_group: str) -> None:
    old, new = pages(N, name="old"), pages(N, name="new")
    trace = [
        *((page, "train") for page, _ in SCANS[scan](old, 4)),
        *((page, second_group) for page, _ in SCANS[scan](new, 2)),
    ]
    hits = replay(Guard(inner), N // 2, trace)
    assert hit_ratio(hits[: 4 * N], after=N) >= 0.48
    assert hit_ratio(hits, after=5 * N) >= 0.45


def test_data_sets_that_change_every_few_epochs() -> None:
    trace: list[Request] = []
    for name in ("a", "b", "c", "d"):
        trace += shuffled(pages(N, name=name), 3, seed=ord(name))
    hits = replay(Guard(S3Fifo), N // 2, trace)
    for number in range(4):
        assert hit_ratio(hits[(3 * number + 1) * N : (3 * number + 3) * N]) >= 0.45


def test_a_scan_that_nobody_repeats_washes_nothing_away() -> None:
    once = ((page, "m") for page in pages(3 * N, name="once"))
    trace = [
        *shuffled(pages(N), 3, seed=1, group="m"),
        *mixed(shuffled(pages(N), 6, seed=2, group="m"), once, share=0.5, seed=3),
        *shuffled(pages(N), 2, seed=4, group="m"),
    ]
    hits = replay(Guard(S3Fifo), int(0.6 * N), trace)
    assert hit_ratio(hits[-2 * N :]) >= 0.57


def test_two_groups_that_are_read_at_once_share_the_cache() -> None:
    one = shuffled(pages(N, name="one"), 8, seed=1, group="one")
    two = shuffled(pages(N, name="two"), 8, seed=2, group="two")
    trace = list(mixed(one, two, share=0.5, seed=3))
    hits = replay(Guard(S3Fifo), N // 2, trace)
    for group in ("one", "two"):
        own = [hit for hit, (_, name) in zip(hits, trace, strict=True) if name == group]
        assert hit_ratio(own, after=3 * N) >= 0.22, f"a quarter of each set fits ({group})"


def test_a_group_that_was_there_first_gives_up_half_to_another() -> None:
    first, second = pages(N, name="first"), pages(N, name="second")
    warm = list(cyclic(first, 3, group="first"))
    both = list(mixed(cyclic(first, 6, group="first"), cyclic(second, 6, group="second"), share=0.5, seed=1))
    hits = replay(Guard(S3Fifo), N // 2, [*warm, *both])
    own = [hit for hit, (_, name) in zip(hits[3 * N :], both, strict=True) if name == "second"]
    assert hit_ratio(own, after=2 * N) >= 0.22


def test_a_small_group_keeps_what_it_has_beside_a_scan() -> None:
    small, big = pages(50, name="small"), pages(2 * N, name="big")
    trace = list(mixed(cyclic(big, 5, group="big"), cyclic(small, 10_000, group="small"), share=0.9, seed=1))
    hits = replay(Guard(LeastRecentlyUsed), N // 2, trace)
    own = [hit for hit, (_, name) in zip(hits, trace, strict=True) if name == "small"]
    assert hit_ratio(own, after=60) >= 0.99


@pytest.mark.parametrize("ghost_keys", [64, 250])
@pytest.mark.parametrize("scan", SCANS)
def test_a_sample_of_the_absent_pages_is_enough(scan: str, ghost_keys: int) -> None:
    policy = Guard(S3Fifo, ghost_keys=ghost_keys)
    hits = replay(policy, N // 2, SCANS[scan](pages(N), 8))
    assert hit_ratio(hits, after=2 * N) >= 0.47


def test_pages_found_at_start_are_kept_until_they_are_read_again() -> None:
    """A restart: pages are tracked without requests, and nothing is remembered of those that are not here."""
    data, policy = pages(N), Guard(S3Fifo)
    for page in data[: N // 2]:
        policy.track(page, 1, "m")
    here = set(data[: N // 2])
    hits = 0
    for page, group in shuffled(data, 3, seed=5, group="m"):
        if page in here:
            hits += 1
            policy.touch(page)
        elif policy.admit(page, 1, group):
            victim = policy.evict()
            assert victim is not None
            here.remove(victim)
            here.add(page)
            policy.track(page, 1, group)
    assert hits >= 3 * N * 0.48


def test_only_what_nobody_asks_for_is_evicted_ahead_of_need() -> None:
    policy = Guard(LeastRecentlyUsed)
    replay(policy, N // 2, cyclic(pages(N, name="old"), 4, group="old"))
    assert not policy.expendable()
    replay(_Ignoring(policy), 1, cyclic(pages(N, name="new"), 1, group="new"))
    assert policy.expendable()


@INNER
def test_no_load_is_served_at_less_than_three_quarters_of_what_an_oracle_reaches(inner: type) -> None:
    for name, (capacity, trace) in LOADS.items():
        ours = hit_ratio(replay(Guard(inner), capacity, trace), after=2 * N)
        best = hit_ratio(belady(capacity, trace), after=2 * N)
        assert ours >= 0.75 * best, f"{name}: {ours:.3f} of {best:.3f}"


def _switch() -> Iterator[Request]:
    yield from shuffled(pages(N, name="old"), 5, seed=1)
    yield from shuffled(pages(N, name="new"), 5, seed=2)


LOADS: dict[str, tuple[int, list[Request]]] = {
    "fixed order": (N // 2, list(cyclic(pages(N), 8))),
    "shuffled": (N // 2, list(shuffled(pages(N), 8, seed=1))),
    "nearly all fits": (N * 9 // 10, list(shuffled(pages(N), 8, seed=1))),
    "popularity": (N // 2, list(zipf(pages(5 * N), 20 * N, seed=1))),
    "popularity and a scan": (
        N // 2,
        list(
            mixed(
                zipf(pages(5 * N), 12 * N, seed=1),
                ((page, "") for page in pages(30 * N, name="scan")),
                share=0.5,
                seed=2,
            )
        ),
    ),
    "change": (N // 2, list(_switch())),
}


def belady(capacity: int, requests: Sequence[Request]) -> list[bool]:
    """The best any policy can do, knowing the future (Belady 1966), with bypass."""
    never = len(requests)
    upcoming = [never] * len(requests)
    later: dict[PageId, int] = {}
    for at in range(len(requests) - 1, -1, -1):
        page = requests[at][0]
        upcoming[at] = later.get(page, never)
        later[page] = at
    kept: dict[PageId, int] = {}
    farthest: list[tuple[int, int, PageId]] = []
    ticket = itertools.count()
    hits = []
    for (page, _), following in zip(requests, upcoming, strict=True):
        hits.append(page in kept)
        kept[page] = following
        heapq.heappush(farthest, (-following, next(ticket), page))
        while len(kept) > capacity or (following == never and page in kept):
            at, _, victim = heapq.heappop(farthest)
            if kept.get(victim) == -at:
                del kept[victim]
    return hits


class _Ignoring:
    """A policy whose cache takes nothing in: only the requests reach it."""

    def __init__(self, policy: Guard) -> None:
        self._policy = policy

    def admit(self, page: PageId, size: int, group: str) -> bool:
        self._policy.admit(page, size, group)
        return False

    def __getattr__(self, name: str) -> object:
        return (lambda *args: None) if name in ("track", "evict") else getattr(self._policy, name)
