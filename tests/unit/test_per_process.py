from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kara_cache.ufs.per_process import PerProcess


def in_a_fork(call: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: forking with threads is the point
        child = multiprocessing.get_context("fork").Process(target=call)
        child.start()
    child.join(timeout=30)
    if child.exitcode is None:
        child.kill()
        child.join()
        pytest.fail("the forked child hangs")
    assert child.exitcode == 0


def test_made_at_first_use_and_once_for_all_threads() -> None:
    made: list[object] = []
    ready = threading.Barrier(8, timeout=30)

    def make() -> object:
        made.append(object())
        return made[-1]

    value = PerProcess(make, lambda _: None)
    assert made == []

    def get() -> object:
        ready.wait()
        return value.get()

    with ThreadPoolExecutor(8) as pool:
        got = [pool.submit(get) for _ in range(8)]
    assert {id(future.result()) for future in got} == {id(made[0])}
    assert len(made) == 1


def test_child_has_its_own_and_leaves_the_parents_alone() -> None:
    closed: list[object] = []
    value = PerProcess(object, closed.append)
    parents = value.get()

    def child_that_uses_it() -> None:
        own = value.get()
        assert own is not parents
        assert value.get() is own
        value.close()
        assert closed == [own]

    def child_that_closes_it() -> None:
        value.close()
        assert closed == [], "the parent's value was closed"

    in_a_fork(child_that_uses_it)
    in_a_fork(child_that_closes_it)
    assert value.get() is parents


def test_lock_held_at_the_fork_does_not_block_the_child() -> None:
    making, go_on = threading.Event(), threading.Event()

    def make() -> int:
        making.set()
        assert go_on.wait(timeout=30)
        return 1

    value = PerProcess(make, lambda _: None)
    thread = threading.Thread(target=value.get)
    thread.start()
    assert making.wait(timeout=30)

    def child() -> None:
        go_on.set()
        assert value.get() == 1

    try:
        in_a_fork(child)
    finally:
        go_on.set()
        thread.join(timeout=30)
    assert value.get() == 1


def test_close_is_idempotent_and_the_next_use_makes_another() -> None:
    closed: list[object] = []
    value = PerProcess(object, closed.append)
    value.close()
    first = value.get()
    value.close()
    value.close()
    assert closed == [first]
    assert value.get() is not first
