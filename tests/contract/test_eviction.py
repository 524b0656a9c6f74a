"""The laws of `kara_worker/eviction/base.py`, over every policy that can be configured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import ConfigError
from kara_cache.page import PageId
from kara_worker.eviction import POLICIES, EvictionPolicy, make_policy
from kara_worker.eviction.trace import Request, cyclic, pages, replay, shuffled, zipf

KINDS = [(name, guard) for name in sorted(POLICIES) for guard in (False, True)]
every_policy = pytest.mark.parametrize("kind", KINDS, ids=[f"{n}-guard" if g else n for n, g in KINDS])
PAGES = pages(12)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["request", "request", "request", "evict", "forget", "touch", "track"]),
        st.integers(0, len(PAGES) - 1),
        st.sampled_from(["", "train", "val"]),
        st.integers(1, 1 << 20),
    ),
    max_size=120,
)


@every_policy
@given(steps=STEPS)
def test_whatever_happens_the_policy_knows_the_same_pages_as_a_set(
    kind: tuple[str, bool], steps: list[tuple[str, int, str, int]]
) -> None:
    policy, model = make_policy(*kind), set[PageId]()
    for verb, number, group, size in steps:
        page = PAGES[number]
        if verb == "evict" or (verb == "request" and page not in model and len(model) == 6):
            if verb == "request" and not policy.admit(page, size, group):
                continue
            victim = policy.evict()
            assert victim in model if model else victim is None
            model.discard(victim or page)
        if verb == "track" or (verb == "request" and page not in model):
            policy.track(page, size, group)
            model.add(page)
        elif verb in ("touch", "request"):
            policy.touch(page)
        elif verb == "forget":
            policy.forget(page)
            model.discard(page)
        assert len(policy) == len(model)
    assert drain(policy) == model


@every_policy
def test_an_empty_policy_has_no_victim(kind: tuple[str, bool]) -> None:
    policy = make_policy(*kind)
    assert policy.evict() is None
    assert not policy.expendable()
    policy.touch(PAGES[0])
    policy.forget(PAGES[0])
    assert len(policy) == 0


@every_policy
def test_with_only_new_pages_room_is_made_in_order_of_arrival(kind: tuple[str, bool]) -> None:
    policy = make_policy(*kind)
    for page in PAGES:
        policy.track(page, 1, "m")
    assert policy.evict() in PAGES[:2], "the oldest of all, or of the main queue behind the small one"


@every_policy
def test_pages_that_are_forgotten_and_come_back_do_not_pile_up(kind: tuple[str, bool]) -> None:
    policy = make_policy(*kind)
    for _ in range(2000):
        for page in PAGES[:4]:
            policy.track(page, 1, "m")
            policy.touch(page)
            policy.forget(page)
    policy.track(PAGES[0], 1, "m")
    assert policy.evict() == PAGES[0]
    assert policy.evict() is None
    assert _longest_container(policy) < 1000


@every_policy
def test_two_runs_over_one_trace_decide_the_same(kind: tuple[str, bool]) -> None:
    trace = [*zipf(pages(400), 3000, seed=5), *shuffled(pages(300), 3, seed=6)]
    assert replay(make_policy(*kind), 90, trace) == replay(make_policy(*kind), 90, trace)


@every_policy
@pytest.mark.parametrize(
    "scan", [cyclic, lambda data, n: shuffled(data, n, seed=3)], ids=["cyclic", "shuffled"]
)
def test_a_data_set_that_fits_is_read_once(kind: tuple[str, bool], scan: object) -> None:
    trace: list[Request] = list(scan(pages(500), 4))  # type: ignore[operator]
    hits = replay(make_policy(*kind), 500, trace)
    assert sum(hits) == 3 * 500


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'belady': expected one of lru, s3fifo"):
        make_policy("belady", False)


def drain(policy: EvictionPolicy) -> set[PageId]:
    found = set()
    while (victim := policy.evict()) is not None:
        assert victim not in found
        found.add(victim)
    return found


def _longest_container(policy: object) -> int:
    """Through slots, attributes and containers of the policy: the length of the longest."""
    longest, todo, seen = 0, [policy], set[int]()
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, str | bytes | int | type):
            continue
        seen.add(id(thing))
        if hasattr(thing, "__len__"):
            longest = max(longest, len(thing))
        todo.extend(vars(thing).values() if hasattr(thing, "__dict__") else ())
        todo.extend(
            getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)
        )
        if isinstance(thing, dict):
            todo.extend(thing.values())
    return longest
