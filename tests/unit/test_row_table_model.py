"""Any sequence of operations on a table, against a list of pairs; with reopening, and other readers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kara_cache import kv

pytest.importorskip("lmdb")

KEYS = st.sampled_from([f"k{i}" for i in range(12)])
ROWS = st.builds(
    lambda i, tags: {"i": i, "tags": list(tags)}, st.integers(0, 99), st.lists(st.integers(0, 9), max_size=3)
)
POSITIONS = st.integers(-14, 14)


class TableAgainstList(RuleBasedStateMachine):
    """`model` is a list of [key, row]; `held` are rows of the table that the user still has."""

    @initialize(pool_size=st.integers(1, 6))
    def open(self, pool_size: int) -> None:
        self.directory = tempfile.mkdtemp()
        self.pool_size = pool_size
        self.table = kv.open_table(self.directory, "new", pool_size=pool_size, sync=False)
        self.model: list[tuple[str, Any]] = []
        self.held: list[tuple[Any, Any]] = []
        self.unnamed = 0

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.table.close()
            shutil.rmtree(self.directory)

    def find(self, key: str) -> int | None:
        return next((i for i, (name, _) in enumerate(self.model) if name == key), None)

    @rule(key=KEYS, row=ROWS)
    def append(self, key: str, row: Any) -> None:
        if self.find(key) is None:
            self.table.append(_copy(row), key)
            self.model.append((key, row))
        else:
            with pytest.raises(ValueError, match="already"):
                self.table.append(row, key)

    @rule(position=POSITIONS, row=ROWS)
    def insert(self, position: int, row: Any) -> None:
        key = self.table.insert(position, _copy(row))
        self.model.insert(position, (key, row))

    @rule(rows=st.dictionaries(KEYS, ROWS, max_size=5))
    def update(self, rows: dict[str, Any]) -> None:
        self.table.update({key: _copy(row) for key, row in rows.items()})
        for key, row in rows.items():
            self._put(key, row)

    @rule(key=KEYS, row=ROWS)
    def assign(self, key: str, row: Any) -> None:
        self.table[key] = _copy(row)
        self._put(key, row)

    def _put(self, key: str, row: Any) -> None:
        place = self.find(key)
        if place is None:
            self.model.append((key, row))
        else:
            self._let_go(self.model[place][1])
            self.model[place] = (key, row)

    def _let_go(self, row: Any) -> None:
        """The user's object is no longer the table's."""
        self.held = [(ours, theirs) for ours, theirs in self.held if theirs is not row]

    @rule(position=POSITIONS)
    def delete_position(self, position: int) -> None:
        self._delete(position, lambda: self.model[position : position + 1 or None])

    @rule(start=POSITIONS, stop=POSITIONS, step=st.sampled_from([None, 2, -1]))
    def delete_slice(self, start: int, stop: int, step: int | None) -> None:
        where = slice(start, stop, step)
        self._delete(where, lambda: self.model[where])

    def _delete(self, where: Any, gone: Callable[[], list[tuple[str, Any]]]) -> None:
        if isinstance(where, int) and not -len(self.model) <= where < len(self.model):
            with pytest.raises(IndexError):
                del self.table[where]
            return
        for _, row in gone():
            self._let_go(row)
        del self.table[where]
        del self.model[where]

    @rule(key=KEYS)
    def delete_key(self, key: str) -> None:
        place = self.find(key)
        if place is None:
            with pytest.raises(KeyError):
                del self.table[key]
        else:
            self._let_go(self.model[place][1])
            del self.table[key]
            del self.model[place]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), value=st.integers(100, 199))
    def change_in_place(self, data: st.DataObject, value: int) -> None:
        place = data.draw(st.integers(0, len(self.model) - 1))
        self.table[place]["i"] = value
        self.model[place][1]["i"] = value

    @precondition(lambda self: self.model)
    @rule(data=st.data(), part=st.booleans())
    def hold(self, data: st.DataObject, part: bool) -> None:
        place = data.draw(st.integers(0, len(self.model) - 1))
        ours = self.table[place]
        self.held.append((ours["tags"] if part else ours, self.model[place][1]))

    @precondition(lambda self: self.held)
    @rule(value=st.integers(200, 299))
    def change_what_is_held(self, value: int) -> None:
        for ours, theirs in self.held:
            (ours if isinstance(ours, list) else ours["tags"]).append(value)
            theirs["tags"].append(value)

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @rule()
    def flush(self) -> None:
        self.table.flush()

    @rule()
    def reload(self) -> None:
        self.held.clear()
        self.table.reload()

    @rule()
    def prune(self) -> None:
        self.table.prune()

    @rule(pool_size=st.integers(1, 6))
    def reopen(self, pool_size: int) -> None:
        self.held.clear()
        self.table.close()
        self.table = kv.open_table(self.directory, "write", pool_size=pool_size, sync=False)

    @rule(rows=st.lists(ROWS, max_size=4), key=KEYS)
    def failing_batch(self, rows: list[Any], key: str) -> None:
        self.held.clear()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
            with self.table.batch():
                self.table.extend(rows)
                self.table[key] = {"i": 0, "tags": []}
                self.table[0]["i"] = -1
                del self.table[::2]
                _ = 1 / 0

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "table"):
            return
        assert len(self.table) == len(self.model)
        assert list(self.table.items()) == self.model
        for place, (key, row) in enumerate(self.model):
            assert self.table.index(key) == place
            assert self.table[key] == row


def _copy(row: Any) -> Any:
    return {"i": row["i"], "tags": list(row["tags"])}


TestTableAgainstList = TableAgainstList.TestCase
TestTableAgainstList.settings = settings(max_examples=60, stateful_step_count=30)
