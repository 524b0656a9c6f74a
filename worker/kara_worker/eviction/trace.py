"""Request traces of training and serving, and the hit ratio of a policy on one: no store, no clock.

The same loop replays the access log of a worker: what is measured is the policy object itself.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from kara_cache.page import PageId
from kara_worker.eviction.base import EvictionPolicy, PageKey

Request = tuple[PageId, str]
"""A page and the group (mount) it belongs to."""


def pages(count: int, *, name: str = "data") -> list[PageId]:
    """`count` pages of one made-up file."""
    identity = name.encode().ljust(16, b"\0")[:16]
    return [PageId(identity, index) for index in range(count)]


def cyclic(data: Sequence[PageId], epochs: int, *, group: str = "") -> Iterator[Request]:
    """Every epoch in the same order."""
    for _ in range(epochs):
        for page in data:
            yield page, group


def shuffled(data: Sequence[PageId], epochs: int, *, seed: int, group: str = "") -> Iterator[Request]:
    """Every epoch in an order of its own."""
    source, order = random.Random(seed), list(data)
    for _ in range(epochs):
        source.shuffle(order)
        for page in tuple(order):
            yield page, group


def zipf(
    data: Sequence[PageId], length: int, *, seed: int, exponent: float = 1.0, group: str = ""
) -> Iterator[Request]:
    """Independent requests, the k-th most popular page with weight k**-exponent."""
    source = random.Random(seed)
    total = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(len(data))))
    popular = list(data)
    source.shuffle(popular)
    for _ in range(length):
        yield popular[bisect_left(total, source.random() * total[-1])], group


def mixed(
    first: Iterable[Request], second: Iterable[Request], *, share: float, seed: int
) -> Iterator[Request]:
    """Requests of two streams at random, `share` of them from the first; ends with the first that ends."""
    source, one, two = random.Random(seed), iter(first), iter(second)
    while (request := next(one if source.random() < share else two, None)) is not None:
        yield request


def replay(policy: EvictionPolicy, capacity: int, requests: Iterable[Request]) -> list[bool]:
    """Whether each request hit a cache of `capacity` pages; calls `policy` as a page store would."""
    here: set[PageKey] = set()
    hits = []
    for page, group in requests:
        hit = page in here
        hits.append(hit)
        if hit:
            policy.touch(page)
            continue
        if len(here) >= capacity and not policy.admit(page, 1, group):
            continue
        while len(here) >= capacity:
            victim = policy.evict()
            assert victim is not None
            here.remove(victim)
        here.add(page)
        policy.track(page, 1, group)
    return hits


def hit_ratio(hits: Sequence[bool], *, after: int = 0) -> float:
    """Of the requests from number `after` on."""
    return sum(hits[after:]) / len(hits[after:])
