"""How many requests of load jobs run at a time, by what the store takes for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kara_worker.jobs.pace import StorePace

SMALL, LARGE = 20_000, 8 << 20


class Store:
    """Answers after `first_s`, and serves at most `per_s` requests a second."""

    def __init__(self, first_s: float, per_s: float) -> None:
        self.first_s = first_s
        self.per_s = per_s

    def latency(self, parallel: int) -> float:
        return max(self.first_s, parallel / self.per_s)


def settle(pace: StorePace, store: Store, length: int = SMALL, count: int = 400) -> int:
    for _ in range(count):
        pace.took(length, store.latency(pace.limit))
    return pace.limit


def test_a_distant_store_gets_all_there_is() -> None:
    assert settle(StorePace(16, clock=lambda: 0.0), Store(0.02, 10_000)) == 16


def test_requests_that_would_only_wait_for_each_other_are_not_sent() -> None:
    pace = StorePace(16, clock=lambda: 0.0)
    pace.took(SMALL, 0.0005)  # when nobody else asked
    near = settle(pace, Store(0.0005, 2000))
    assert 2 <= near <= 6


def test_a_store_that_has_room_again_gets_more() -> None:
    pace = StorePace(16, clock=lambda: 0.0)
    pace.took(SMALL, 0.0005)
    settle(pace, Store(0.0005, 2000))
    assert settle(pace, Store(0.0005, 1e9)) == 16


def test_the_best_of_earlier_is_forgotten() -> None:
    now = 0.0
    pace = StorePace(16, clock=lambda: now)
    pace.took(SMALL, 0.001)
    for _ in range(600):  # since then a request takes 20 ms, however few there are
        now += 1
        pace.took(SMALL, 0.02)
    assert pace.limit == 16


def test_large_requests_are_not_compared_with_small_ones() -> None:
    pace = StorePace(16, clock=lambda: 0.0)
    for _ in range(100):
        pace.took(SMALL, 0.001)
        pace.took(LARGE, 0.1)
    assert pace.limit == 16


def test_refusals_halve_the_limit_down_to_one() -> None:
    pace = StorePace(16, clock=lambda: 0.0)
    limits = []
    for _ in range(6):
        pace.failed()
        limits.append(pace.limit)
    assert limits == [8, 4, 2, 1, 1, 1]


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.floats(0, 1e4), st.booleans()), max_size=50),
)
def test_the_limit_is_within_its_bounds(most: int, events: list[tuple[int, float, bool]]) -> None:
    pace = StorePace(most, clock=lambda: 0.0)
    for length, seconds, failed in events:
        if failed:
            pace.failed()
        else:
            pace.took(length, seconds)
        assert 1 <= pace.limit <= most
