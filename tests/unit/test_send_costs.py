"""By copy or by sendfile: the choice is arithmetic on what was measured, and what is measured gives one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_worker.http.send_costs import SIZES, USUAL_BYTES, SendCost, measure, measured, sendfile_above

KIB = 1 << 10


def costs(copied_us: list[float], sendfile_us: list[float]) -> list[SendCost]:
    return [
        SendCost(size, a * 1e-6, b * 1e-6) for size, a, b in zip(SIZES, copied_us, sendfile_us, strict=True)
    ]


@pytest.mark.parametrize(
    ("copied_us", "sendfile_us", "want"),
    [
        pytest.param(
            [6.5, 6.8, 7.4, 8.7, 13.5],
            [6.8, 6.8, 6.9, 7.2, 10.0],
            8 * KIB,
            id="as where it was measured first",
        ),
        pytest.param([5, 5, 6, 8, 12], [5, 5, 6, 8, 12], 8 * KIB, id="no difference: as usual"),
        pytest.param([5, 5, 6, 7, 9], [12, 12, 12, 12, 12], 64 * KIB, id="a second system call is dear"),
        pytest.param([20, 24, 30, 40, 60], [6, 6, 7, 8, 10], 0, id="copies are dear"),
        pytest.param([5, 6, 7, 9, 30], [10, 10, 10, 10, 10], 32 * KIB, id="in between"),
        pytest.param(
            [7.0, 7.4, 7.6, 8.7, 13], [6.8, 6.9, 7.0, 7.2, 10], 8 * KIB, id="a few per cent are noise"
        ),
    ],
)
def test_the_cheaper_way_is_chosen(copied_us: list[float], sendfile_us: list[float], want: int) -> None:
    assert sendfile_above(costs(copied_us, sendfile_us)) == want


def test_nothing_measured_is_as_usual() -> None:
    assert sendfile_above([]) == USUAL_BYTES


TIMES = st.lists(st.floats(1e-7, 1e-3), min_size=len(SIZES), max_size=len(SIZES))


@given(TIMES, TIMES)
def test_no_other_limit_is_much_cheaper(copied: list[float], sent: list[float]) -> None:
    found = costs(copied, sent)
    chosen = sendfile_above(found)
    assert chosen in (0, *SIZES)

    def lost(limit: int) -> float:
        ways = [(one.copied_s if one.size <= limit else one.sendfile_s, one) for one in found]
        return sum(way / min(one.copied_s, one.sendfile_s) for way, one in ways)

    assert lost(chosen) <= 1.06 * min(lost(limit) for limit in (0, *SIZES))


def test_both_ways_are_measured_and_give_a_legal_choice(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert [cost.size for cost in found] == list(SIZES[: len(found)])
    assert found
    assert all(cost.copied_s > 0 and cost.sendfile_s > 0 for cost in found)
    assert measured(tmp_path) in (0, *SIZES)
    assert list(tmp_path.iterdir()) == []


def test_no_time_and_no_directory_are_no_trouble(tmp_path: Path) -> None:
    assert measure(tmp_path, cpu_s=-1) == ()
    assert measured(tmp_path / "none") in (0, *SIZES)
