"""How load jobs make way: the rule, what it is told of, and how workers tell each other of readers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kara_cache.cluster import Cluster
from kara_worker.jobs import processor_waits
from kara_worker.jobs.batch import Action, Batch, Outcome, decode_batch, encode_outcome
from kara_worker.jobs.courtesy import LATE_S, LEAST, SPENT, WAIT_S, Courtesy, Look
from kara_worker.jobs.lanes import Lanes
from kara_worker.jobs.processor_waits import ProcessorWaits

CALM = Look(late_s=0.0, wait_s=0.0, spent=1.0)
BUSY = Look(late_s=0.0, wait_s=2 * WAIT_S, spent=1.0)
LATE = Look(late_s=2 * LATE_S, wait_s=0.0, spent=1.0)
FRUGAL = Look(late_s=2 * LATE_S, wait_s=2 * WAIT_S, spent=SPENT)
BURST = Look(late_s=2 * LATE_S, wait_s=2 * WAIT_S, spent=SPENT * 2)
LOOKS = 16  # for one more


def limits(most: int, steps: list[tuple[Look, bool]]) -> list[int]:
    courtesy, told = Courtesy(most), []
    for look, readers in steps:
        courtesy.note(look, readers=readers)
        told.append(courtesy.limit)
    return told


@pytest.mark.parametrize("look", [BUSY, LATE])
def test_readers_that_would_wait_halve_it_and_when_they_have_gone_all_of_it_is_back(look: Look) -> None:
    assert limits(16, [(look, True)] * 5 + [(look, False)]) == [8, 4, 2, 1, 1, 16]


def test_it_grows_slowly_while_nobody_would_wait() -> None:
    told = limits(16, [(BUSY, True)] * 4 + [(CALM, True)] * 3 * LOOKS)
    assert told[3::LOOKS] == [1, 2, 3, 4]
    assert limits(3, [(BUSY, True)] + [(CALM, True)] * 100 * LOOKS)[-1] == 3


def test_a_load_that_hardly_uses_processors_keeps_enough_for_a_line() -> None:
    assert limits(16, [(FRUGAL, True)] * 40)[-1] == 4
    assert limits(16, [(BURST, True), *[(FRUGAL._replace(spent=0.0), True)] * 2] * 40)[-1] == 4
    assert limits(16, [(BURST, True)] * 40)[-1] == 1
    assert limits(16, [(BUSY, True)] * 40 + [(FRUGAL, True)] * 100)[-1] == 1  # making way gives nothing back
    assert limits(2, [(FRUGAL, True)] * 3)[-1] == 1


def test_nobody_reads_nobody_waits() -> None:
    assert limits(16, [(BUSY, False), (LATE, False)]) == [16, 16]


LOOK = st.builds(Look, st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 2))


@given(
    st.integers(1, 40),
    st.lists(st.tuples(LOOK, st.booleans()), max_size=80),
)
def test_whatever_is_seen_it_stays_in_bounds(most: int, steps: list[tuple[Look, bool]]) -> None:
    before = most
    for (look, readers), limit in zip(steps, limits(most, steps), strict=True):
        assert min(LEAST, most) <= limit <= most
        if readers and look.readers_wait:
            assert limit <= before
        if not readers:
            assert limit == most
        before = limit


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(2, 32))
def test_a_machine_that_bears_so_many_is_given_about_so_many(bears: int, most: int) -> None:
    """A model: who asks for more than the machine bears makes readers wait."""
    steps, courtesy, settled = 80 * LOOKS, Courtesy(most), []
    for step in range(steps):
        courtesy.note(BUSY if courtesy.limit > bears else CALM, readers=True)
        if step > steps // 2:
            settled.append(courtesy.limit)
    assert max(settled) <= min(most, bears + 1)
    assert sum(settled) / len(settled) >= min(most, bears) / 2


def test_it_is_the_kernel_s_count_of_this_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "schedstat"
    counts.write_text("5 1000 10\n")
    monkeypatch.setattr(processor_waits, "_SCHEDSTAT", str(counts))
    waits = ProcessorWaits()
    counts.write_text("9 3001000 14\n")
    assert waits.look(0.5)[:2] == (0.5, 3e6 / 4 / 1e9)
    assert waits.look(0.0).wait_s == 0.0
    counts.write_text("what is this")
    assert waits.look(0.0).wait_s == 0.0
    counts.write_text("9 3002000 16\n")
    assert waits.look(0.0).wait_s == 5e-7
    waits.close()
    assert waits.look(0.0).wait_s >= 0.0
    waits.close()


def test_where_the_kernel_does_not_count_nobody_seems_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_waits, "_SCHEDSTAT", str(tmp_path / "none"))
    waits = ProcessorWaits()
    assert waits.look(0.25)[:2] == (0.25, 0.0)
    waits.close()


def test_this_kernel_s_numbers_are_sane_and_nothing_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    waits = ProcessorWaits()
    look = waits.look(0.0)
    assert look.wait_s >= 0
    assert look.spent >= -1
    waits.close()
    assert set(os.listdir("/proc/self/fd")) <= before


class Worker:
    """One that says whether somebody reads from it."""

    def __init__(self, *, readers: bool) -> None:
        self.readers = readers
        self.told: list[bool] = []

    def call(self, method: str, path: str, deadline: float, *, body: bytes) -> object:
        self.told.append(decode_batch(body).readers)
        return msgspec.json.decode(encode_outcome(Outcome(readers=self.readers)))


class Workers:
    """As much of a cluster as lanes look at."""

    def __init__(self, **clients: Worker) -> None:
        self.clients = clients

    def table(self) -> Workers:
        return self


def test_what_one_worker_says_of_its_readers_the_others_are_told() -> None:
    read, other = Worker(readers=True), Worker(readers=False)
    lanes: Lanes[None] = Lanes(cast(Cluster, Workers(read=read, other=other)))
    try:
        for worker in ("other", "read", "other", "read"):
            lanes.put(worker, Batch("1" * 32, Action.LOOK, ()), [])
            answer = lanes.take(30.0)
            assert answer is not None
            assert answer.error is None
    finally:
        lanes.close()
    assert (read.told, other.told) == ([False, True], [False, True])
