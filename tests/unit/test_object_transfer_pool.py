"""Threads that carry bytes: never more than asked for, and an end in every case."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kara_cache.storage.objects.transfer_pool import Stopped, Task, TransferPool

WAIT_S = 30.0


class Meter:
    """How much runs at the same time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.done = 0

    def task(self, cost: int) -> Task:
        def do() -> None:
            with self.lock:
                self.now += cost
                self.most = max(self.most, self.now)
            with self.lock:
                self.now -= cost
                self.done += 1

        return cost, do


def test_everything_is_done_within_the_budget() -> None:
    meter = Meter()
    TransferPool(8, 100).run(meter.task(cost) for cost in [30, 50, 20, 90, 10] * 40)
    assert meter.done == 200
    assert meter.most <= 100


def test_what_is_larger_than_the_budget_runs_alone() -> None:
    meter = Meter()
    TransferPool(8, 100).run(meter.task(cost) for cost in [10, 500, 10, 10] * 10)
    assert meter.done == 40
    assert meter.most == 500


def test_no_tasks() -> None:
    TransferPool(4, 100).run([])


def test_tasks_run_at_the_same_time() -> None:
    barrier = threading.Barrier(4, timeout=WAIT_S)
    TransferPool(4, 100).run((1, barrier.wait) for _ in range(4))  # type: ignore[misc]  # what it returns is dropped


def test_the_first_error_ends_all() -> None:
    pool, began = TransferPool(2, 100), threading.Event()
    taken = []

    def lasting() -> None:
        began.set()
        while True:
            pool.check_running()

    def failing() -> None:
        assert began.wait(WAIT_S)
        raise OSError("no space")

    def tasks() -> Iterator[Task]:
        for do in (lasting, failing, *([lasting] * 1000)):
            taken.append(do)
            yield 1, do

    with pytest.raises(OSError, match="no space"):
        pool.run(tasks())
    assert len(taken) <= 4
    with pytest.raises(Stopped):
        pool.check_running()


def test_an_error_among_the_tasks_themselves() -> None:
    def tasks() -> Iterator[Task]:
        yield 1, lambda: None
        raise OSError("no more descriptors")

    with pytest.raises(OSError, match="descriptors"):
        TransferPool(3, 100).run(tasks())


def test_it_can_be_used_again() -> None:
    pool, meter = TransferPool(2, 100), Meter()

    def failing() -> None:
        raise OSError("once")

    with pytest.raises(OSError, match="once"):
        pool.run([(1, failing)])
    pool.run([meter.task(1), meter.task(1)])
    assert meter.done == 2


def test_threads() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        TransferPool(0, 100)


def test_an_interrupt_does_not_wait_for_a_stalled_task(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, stalled, go_on = TransferPool(1, 100), threading.Event(), threading.Event()
    ends: list[str] = []

    def stall() -> None:
        stalled.set()
        assert go_on.wait(WAIT_S)
        try:
            pool.check_running()
        except Stopped:
            ends.append("stopped")
            raise

    def interrupt(thread: threading.Thread, timeout: float | None = None) -> None:
        assert stalled.wait(WAIT_S)
        monkeypatch.undo()
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    monkeypatch.setattr(threading.Thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.run([(1, stall)])
    (thread,) = set(threading.enumerate()) - before
    go_on.set()
    thread.join(WAIT_S)
    assert ends == ["stopped"]
