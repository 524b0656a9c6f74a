"""What one thread changes while another is in the middle of reading the same row."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kara_cache import kv

pytest.importorskip("lmdb")
from kara_cache.storage.kv.table_pool import TablePool

WAIT_S = 30


@pytest.fixture
def table(tmp_path: Path) -> Iterator[kv.RowTable]:
    """Whose pool keeps one row."""
    with kv.open_table(tmp_path / "db", "new", pool_size=1) as opened:
        opened.update((f"k{i}", {"i": i}) for i in range(4))
        opened.reload()
        yield opened


def elsewhere(act: Callable[[], object]) -> None:
    """In another thread, to its end."""
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as exc:
            wrong.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert wrong == []


class Position:
    """A table asks what number it is when it has begun to read: then something happens elsewhere, once."""

    def __init__(self, number: int, meanwhile: Callable[[], object]) -> None:
        self._number = number
        self._meanwhile = [meanwhile]

    def __index__(self) -> int:
        while self._meanwhile:
            elsewhere(self._meanwhile.pop())
        return self._number


class Key(str):
    """The same with a key, whose bytes are asked for."""

    meanwhile: list[Callable[[], object]]

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        while self.meanwhile:
            elsewhere(self.meanwhile.pop())
        return super().encode(encoding, errors)


def key(name: str, meanwhile: Callable[[], object]) -> Key:
    found = Key(name)
    found.meanwhile = [meanwhile]
    return found


def replace(table: kv.RowTable) -> None:
    table["k1"] = {"i": "new"}


def replace_at(table: kv.RowTable) -> None:
    table[1:2] = [{"i": "new"}]


def change(table: kv.RowTable) -> None:
    table["k1"]["i"] = "new"
    table.flush()


def change_and_leave(table: kv.RowTable) -> None:
    table["k1"]["i"] = "new"  # written when it leaves


def change_in_a_batch(table: kv.RowTable) -> None:
    with table.batch():
        table["k1"]["i"] = "new"


def replace_in_a_batch(table: kv.RowTable) -> None:
    with table.batch():
        table["k1"] = {"i": "new"}


CHANGES = [replace, replace_at, change, change_and_leave, change_in_a_batch, replace_in_a_batch]


@pytest.mark.parametrize("act", CHANGES)
@pytest.mark.parametrize("by", ["key", "position"])
def test_a_row_that_was_replaced_while_it_was_read(
    table: kv.RowTable, act: Callable[[kv.RowTable], None], by: str
) -> None:
    """Nor does the old row come into the pool, where it would stay and be written over the new one."""

    def meanwhile() -> None:
        act(table)
        assert [table["k2"], table["k3"]] == [{"i": 2}, {"i": 3}]  # k1 leaves the pool

    row = table[key("k1", meanwhile)] if by == "key" else table[Position(1, meanwhile)]
    assert row == {"i": "new"}
    assert table["k1"] is row
    row["more"] = 1
    table.reload()
    assert table["k1"] == {"i": "new", "more": 1}


@pytest.mark.parametrize("act", [lambda table: table.pop("k1"), lambda table: table.clear()])
def test_a_row_that_was_deleted_while_it_was_read(
    table: kv.RowTable, act: Callable[[kv.RowTable], None]
) -> None:
    with pytest.raises(KeyError, match="k1"):
        table[key("k1", lambda: act(table))]
    assert table.get("k1") is None
    table["k1"] = {"i": "again"}
    assert table["k1"] == {"i": "again"}


def test_positions_that_shift_while_one_is_looked_up(table: kv.RowTable) -> None:
    def meanwhile() -> None:
        del table["k0"]

    assert table[Position(1, meanwhile)] == {"i": 2}


# -- while a batch goes on


def test_a_row_that_a_batch_deleted_does_not_come_back(table: kv.RowTable) -> None:
    seen: list[object] = []
    with table.batch():
        del table["k1"]
        elsewhere(lambda: seen.append(table["k1"]))
        elsewhere(lambda: seen.extend(table))
        assert table.get("k1") is None
    assert seen == [{"i": 1}, {"i": 0}, {"i": 1}, {"i": 2}, {"i": 3}]  # nothing was committed yet
    assert table.get("k1") is None
    assert [row["i"] for row in table] == [0, 2, 3]


@pytest.mark.parametrize("act", [replace, replace_at, change_and_leave])
def test_a_row_that_a_batch_replaced_is_read_as_it_was(
    table: kv.RowTable, act: Callable[[kv.RowTable], None]
) -> None:
    seen: list[object] = []
    with table.batch():
        act(table)
        assert table["k2"] == {"i": 2}  # k1 leaves the pool
        elsewhere(lambda: seen.append(table["k1"]))
        elsewhere(lambda: seen.append(table[1]))
        assert table["k1"] == {"i": "new"}
        elsewhere(lambda: seen.append(table["k1"]))  # and when it is in the pool again
    assert seen == [{"i": 1}] * 3
    assert table["k1"] == {"i": "new"}
    elsewhere(lambda: seen.append(table["k1"]))
    assert seen[-1] is table["k1"]


def test_a_row_that_was_read_before_a_batch_ended(table: kv.RowTable) -> None:
    """The one who reads has begun when the batch has already changed the row, and ends after it."""
    changed, read = threading.Event(), threading.Event()

    def batch() -> None:
        with table.batch():
            table["k1"] = {"i": "new"}
            changed.set()
            assert read.wait(WAIT_S)
        assert table["k2"] == {"i": 2}  # k1 leaves the pool

    def meanwhile() -> None:
        read.set()
        thread.join(WAIT_S)

    thread = threading.Thread(target=batch)
    thread.start()
    assert changed.wait(WAIT_S)
    assert table[key("k1", meanwhile)] == {"i": "new"}
    assert not thread.is_alive()
    assert table["k1"] == {"i": "new"}


def test_a_batch_that_fails_leaves_nothing_behind(table: kv.RowTable) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        with table.batch():
            replace(table)
            del table["k2"]
            table.append({"i": 4}, "k4")
            _ = 1 / 0
    assert [row["i"] for row in table] == [0, 1, 2, 3]
    kept = table["k1"]
    assert table["k1"] is kept  # in the pool again: nothing of the batch hides it
    assert table.get("k4") is None


def test_what_a_failed_call_wrote_in_a_batch_is_what_the_batch_reads(table: kv.RowTable) -> None:
    with table.batch():
        assert table["k1"] == {"i": 1}
        with pytest.raises(TypeError):
            table.update([("k1", {"i": "new"}), ("k2", object())])
        assert table["k1"] == {"i": "new"}
    assert table["k1"] == {"i": "new"}


def test_forgetting_rows_in_the_middle_of_a_batch(table: kv.RowTable) -> None:
    with table.batch():
        del table["k1"]
        elsewhere(table.reload)
        elsewhere(lambda: table["k1"])
    assert table.get("k1") is None


# -- the order of writers


@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_the_pool_follows_a_transaction_before_another_one_begins(table: kv.RowTable, ends: str) -> None:
    followed: list[str] = []

    def follow(what: str) -> None:
        followed.append(what)
        elsewhere(refused)

    def refused() -> None:
        with pytest.raises(TimeoutError, match="another thread"):
            table.db.transaction(table="rows", wait=False)

    transaction = table.db.transaction(table="rows")
    transaction.follow(lambda: follow("commit"), lambda: follow("abort"))
    getattr(transaction, ends)()
    assert followed == [ends]
    elsewhere(lambda: table.append({"i": 4}))


def test_a_row_is_held_from_the_moment_when_the_pool_gives_it(table: kv.RowTable) -> None:
    """Else it could leave before the one who asked for it has it, and what he changes in it be lost."""
    waiting = [lambda: table[2:]]  # makes the pool full: whatever nobody holds leaves

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not TablePool.get.__code__:
            return None
        if event == "return" and waiting:
            elsewhere(waiting.pop())
        return trace

    def change() -> None:
        sys.settrace(trace)  # of this thread
        try:
            table["k1"]["i"] = "changed"
        finally:
            sys.settrace(None)

    assert table["k1"] == {"i": 1}
    elsewhere(change)
    assert waiting == []
    table.reload()
    assert table["k1"] == {"i": "changed"}
