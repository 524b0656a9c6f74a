from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_worker import hot_paths
from kara_worker.hot_paths import _KEPT, SAMPLE, HotPaths


@dataclass(frozen=True)
class File:
    path: str
    size: int = 1

    @property
    def file_id(self) -> bytes:
        return self.path.encode()


def read(hot: HotPaths, path: str) -> None:
    for _ in range(SAMPLE):
        hot.read(File(path))


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


@given(st.lists(st.integers(0, 60), min_size=1))
def test_the_files_read_last_are_known(reads: list[int]) -> None:
    """At least as many as one generation holds, at most as many as two and what comes between two looks."""
    limit = 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hot_paths, "_LATELY", limit)
        patch.setattr(hot_paths, "SAMPLE", 1)
        hot = HotPaths()
        for number in reads:
            hot.read(File(f"/m/{number}"))
    lately = [file.path for file in hot.lately()]
    assert len(lately) == len(set(lately)) <= 2 * limit + 1
    newest = list(dict.fromkeys(f"/m/{number}" for number in reversed(reads)))
    assert set(newest[:limit]) <= set(lately)
