"""The counting tree against a list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lmdb")
from kara_cache.storage.kv import order_tree
from kara_cache.storage.kv.order_tree import OrderTree


class DictRecords(dict[bytes, bytes]):
    def get(self, key: bytes) -> bytes | None:  # type: ignore[override]
        return dict.get(self, key)

    def put(self, key: bytes, value: bytes) -> None:
        self[key] = bytes(value)

    def delete(self, key: bytes) -> None:
        self.pop(key, None)


STEPS = st.lists(
    st.tuples(st.sampled_from(["insert", "insert", "append", "remove", "reopen"]), st.integers(0, 999))
)


@pytest.mark.parametrize(("leaf", "inner"), [(2, 2), (3, 4), (240, 120)])
@given(steps=STEPS)
def test_positions_are_those_of_a_list(leaf: int, inner: int, steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_tree, "LEAF_ENTRIES", leaf)
        patch.setattr(order_tree, "INNER_ENTRIES", inner)
        patch.setattr(order_tree, "_CACHED_NODES", 4)
        _run(steps)


def _run(steps: list[tuple[str, int]]) -> None:
    records = DictRecords()
    tree, model = OrderTree(records, 0, 1), list[int]()
    for row, (step, number) in enumerate(steps):
        if step == "insert":
            place = number % (len(model) + 1)
            tree.insert(place, row)
            model.insert(place, row)
        elif step == "append":
            tree.insert(len(model), row)
            model.append(row)
        elif step == "remove" and model:
            tree.remove(model.pop(number % len(model)))
        else:
            tree.write()
            tree = OrderTree(records, tree.root, tree.next_node)
        assert len(tree) == len(model)
    assert list(tree.rows(0, len(model))) == model
    assert [tree.at(i) for i in range(len(model))] == model
    assert [tree.position(row) for row in model] == list(range(len(model)))
    for row in model:
        tree.remove(row)
    tree.write()
    assert (tree.root, records) == (0, {})


def test_appending_fills_nodes_to_the_brim() -> None:
    records = DictRecords()
    tree = OrderTree(records, 0, 1)
    for row in range(24_000):
        tree.insert(row, row)
    tree.write()
    nodes = [value for key, value in records.items() if key.startswith(b"n")]
    assert len(nodes) == 100 + 1
    assert max(map(len, nodes)) == 16 + 240 * 8
    assert list(tree.rows(11_990, 12_010)) == list(range(11_990, 12_010))


def test_a_node_is_as_drawn() -> None:
    records = DictRecords()
    tree = OrderTree(records, 0, 1)
    tree.insert(0, 258)
    tree.write()
    drawn: Any = {
        b"n" + bytes(7) + b"\1": b"L" + bytes(7) + bytes(8) + b"\2\1" + bytes(6),
        b"w" + bytes(6) + b"\1\2": b"\1" + bytes(7),
    }
    assert records == drawn
