"""What the collector passes over: the start of a worker, and its books whenever they have doubled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from kara_worker.long_lived import LongLived


class Node:
    """May be part of a cycle."""

    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """This process goes on with a collector that sees everything."""
    yield
    gc.unfreeze()
    gc.collect()


def watched() -> bool:
    """Whether the collector sees objects that were made just now."""
    return gc.isenabled()


def test_what_is_made_inside_is_not_looked_at_again() -> None:
    with LongLived().made():
        assert not watched()
        node = Node()
    assert watched()
    assert all(known is not node for known in gc.get_objects())
    later = Node()
    assert any(known is later for known in gc.get_objects())


def test_what_goes_is_freed_all_the_same() -> None:
    with LongLived().made():
        node = Node()
    gone = weakref.ref(node)
    del node
    assert gone() is None


def test_a_start_that_fails_keeps_nothing() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ValueError, match="no"), LongLived().made():
        raise ValueError("no")
    assert gc.get_freeze_count() == before
    assert watched()


def test_books_are_passed_over_when_they_have_doubled() -> None:
    long_lived = LongLived()
    frozen = []
    for pages in (1000, 70_000, 100_000, 139_999, 140_000, 150_000):
        before = gc.get_freeze_count()
        node = Node()
        long_lived.grown(pages)
        frozen.append(gc.get_freeze_count() > before)
        assert any(known is node for known in gc.get_objects()) is not frozen[-1]
    assert frozen == [False, True, False, False, True, False]


def test_garbage_is_collected_before() -> None:
    node = Node()
    node.other = node
    gone = weakref.ref(node)
    del node
    LongLived().grown(1 << 20)
    assert gone() is None
