"""When readers are told of the bytes that have come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kara_cache.ufs.milestones import STEP_BYTES, STEP_S, Milestones


def told_of(steps: list[tuple[float, int]]) -> list[int]:
    """Each step: when, and how many bytes are valid then."""
    now, told = 0.0, []

    def clock() -> float:
        return now

    milestones = Milestones(told.append, clock)
    for now, done in steps:  # noqa: B007 - the clock reads it
        milestones.passed(done)
    return told


def test_the_first_bytes_are_told_at_once_and_then_each_mebibyte() -> None:
    quarter = STEP_BYTES // 4
    assert told_of([(1.0, quarter * count) for count in range(10)]) == [quarter, 5 * quarter, 9 * quarter]


def test_a_slow_store_is_told_of_in_time() -> None:
    assert told_of([(1 + STEP_S * step * 0.6, step + 1) for step in range(6)]) == [1, 3, 5]


@given(st.lists(st.integers(0, 3 * STEP_BYTES), max_size=20), st.integers(0, 3 * STEP_BYTES))
def test_what_was_told_grows_and_the_end_is_always_told(steps: list[int], end: int) -> None:
    told: list[int] = []
    milestones = Milestones(told.append, lambda: 0.0)
    for done in steps:
        milestones.passed(done)
    assert told == sorted(set(told))
    milestones.ended(end)
    assert told[-1] == end == milestones.told


def test_nobody_is_told_where_nobody_listens() -> None:
    milestones = Milestones(None)
    milestones.passed(5)
    milestones.ended(5)
    assert milestones.told is None
