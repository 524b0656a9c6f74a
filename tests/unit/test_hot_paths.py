from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kara_worker.hot_paths import _KEPT, SAMPLE, HotPaths


def read(hot: HotPaths, path: str) -> None:
    for _ in range(SAMPLE):
        hot.read(path)


@given(st.lists(st.integers(0, 20)))
def test_few_files_are_counted_exactly(reads: list[int]) -> None:
    hot = HotPaths()
    for number in reads:
        read(hot, f"/m/{number}")
    assert dict(hot.top(100)) == {f"/m/{n}": count * SAMPLE for n, count in Counter(reads).items()}


@given(st.lists(st.integers(0, 3 * _KEPT), max_size=2000))
def test_a_file_that_is_read_often_is_never_missed(reads: list[int]) -> None:
    """The law of Space-Saving: whatever has more than 1/kept of all counts is among the kept."""
    hot = HotPaths()
    for number in reads:
        read(hot, f"/m/{number}")
    kept = dict(hot.top(10_000))
    assert len(kept) <= _KEPT
    for number, count in Counter(reads).items():
        if count > len(reads) / _KEPT:
            assert kept[f"/m/{number}"] >= count * SAMPLE


def test_what_was_hot_leaves() -> None:
    hot = HotPaths()
    read(hot, "/m/old")
    for _ in range(20):
        for number in range(1000):
            read(hot, f"/m/{number % 3}")
    assert "/m/old" not in dict(hot.top(100))
