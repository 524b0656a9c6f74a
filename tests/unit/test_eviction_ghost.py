"""The memory of pages that are not here: bounded, and fair to every page."""

from __future__ import annotations

import math

import pytest

from kara_worker.eviction.ghost import GhostList, page_key
from kara_worker.eviction.recent_max import RecentMax
from kara_worker.eviction.trace import pages


def test_absences_are_exact_to_the_stamp() -> None:
    page, ghosts = pages(1)[0], GhostList(10)
    assert ghosts.meet(page, 100, 96) == math.inf
    assert ghosts.meet(page, 150, 144) == 54
    ghosts.forget(page)
    assert ghosts.meet(page, 160, 160) == math.inf
    ghosts.remember(page, 155)
    assert ghosts.meet(page, 165, 160) == 10


def test_keys_are_the_same_everywhere_and_spread() -> None:
    assert page_key(pages(4)[3]) == 836_304_557_329_057_229
    keys = {page_key(page) for page in pages(4000)}
    assert len(keys) == 4000
    low = sum(key < 1 << 58 for key in keys)
    assert 900 < low < 1100, "a quarter of the keys in the lowest quarter"


def test_above_the_limit_a_sample_stands_for_all() -> None:
    data, ghosts = pages(10_000), GhostList(500)
    for now, page in enumerate(data):
        ghosts.meet(page, now, now)
        ghosts.prune(0)
        assert len(ghosts) <= 500
    met = [ghosts.meet(page, 10_000 + now, 10_000 + now) for now, page in enumerate(data)]
    inside = [away for away in met if away is not None]
    assert 250 <= len(inside) <= 500
    assert set(inside) == {10_000}, "a page in the sample was in it all the time"


def test_room_is_made_by_age_before_the_sample_shrinks() -> None:
    data, ghosts = pages(900), GhostList(300)
    for now, page in enumerate(data):
        ghosts.meet(page, now, now)
        ghosts.prune(now - 150)
    assert ghosts.sampled == 1.0


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_pages_outside_the_sample_are_admitted_at_the_rate_of_those_inside(rate: float) -> None:
    ghosts, admitted = GhostList(1), 0
    for number in range(4000):
        ghosts.record(number % 4 < rate * 4)
        admitted += ghosts.extrapolate()
    assert admitted == pytest.approx(4000 * rate, abs=40)


def test_the_recent_maximum_forgets_after_two_generations() -> None:
    recent = RecentMax()
    recent.add(7)
    recent.turn()
    recent.add(3)
    assert recent.value == 7
    recent.turn()
    assert recent.value == 3
