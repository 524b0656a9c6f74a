"""Row numbers in an order that people choose: a B+ tree whose inner nodes count what is below them.

Finding the row at a position, finding a row's position, inserting and removing all visit one node for
each level: with 240 entries in a node (so that one stays within half a page of LMDB) that is 1 node up
to 240 rows, 2 up to 28 thousand, 3 up to 3 million, 4 up to 400 million. Appending fills nodes to the brim.

A node, little-endian:

    | kind 1: "L" or "I" | zero 7 | parent 8, 0 at the root | entries ... |
    leaf entry:    | row 8 |
    inner entry:   | child 8 | rows below it 8 |

Beside the nodes lies for each row the number of its leaf (8), so that a row finds its position.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from typing import Protocol

LEAF_ENTRIES = 240
INNER_ENTRIES = 120
_HEAD = struct.Struct("<c7xQ")
_NUMBER = struct.Struct("<Q")
_CACHED_NODES = 2048  # 2 KB each


class Records(Protocol):
    """One transaction's view of one table."""

    def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...


class _Node:
    __slots__ = ("changed", "counts", "entries", "number", "parent")

    def __init__(self, number: int, parent: int, entries: array[int], counts: array[int] | None) -> None:
        self.number = number
        self.parent = parent
        self.entries = entries  # rows, or children
        self.counts = counts  # of the children; None in a leaf
        self.changed = False

    @property
    def total(self) -> int:
        return len(self.entries) if self.counts is None else sum(self.counts)


def node_key(number: int) -> bytes:
    return b"n" + number.to_bytes(8, "big")


def leaf_key(row: int) -> bytes:
    return b"w" + row.to_bytes(8, "big")


class OrderTree:
    """`root` is 0 while there are no rows. After changes `write` puts them into the records."""

    def __init__(
        self, records: Records, root: int, next_node: int, cache: dict[int, _Node] | None = None
    ) -> None:
        self._records = records
        self.root = root
        self.next_node = next_node
        self._nodes: dict[int, _Node] = {} if cache is None else cache

    def __len__(self) -> int:
        return self._node(self.root).total if self.root else 0

    def at(self, position: int) -> int:
        """The row at 0 <= position < len."""
        leaf, place = self._descend(position)
        return leaf.entries[place]

    def rows(self, start: int, stop: int) -> Iterator[int]:
        """The rows at these positions, one descent for each leaf."""
        while start < stop:
            leaf, place = self._descend(start)
            found = leaf.entries[place : place + stop - start]
            yield from found
            start += len(found)

    def position(self, row: int) -> int:
        node = self._leaf_of(row)
        before = node.entries.index(row)
        while node.parent:
            parent = self._node(node.parent)
            assert parent.counts is not None
            before += sum(parent.counts[: parent.entries.index(node.number)])
            node = parent
        return before

    def insert(self, position: int, row: int) -> None:
        """So that it is at `position`, 0 <= position <= len."""
        if not self.root:
            leaf = self._new(0, array("Q"), None)
            self.root, place = leaf.number, 0
        elif position == len(self):
            leaf, place = self._descend(position - 1)
            place += 1
        else:
            leaf, place = self._descend(position)
        leaf.entries.insert(place, row)
        self._touch(leaf)
        self._put_leaf(row, leaf)
        self._add_up(leaf, 1)
        if len(leaf.entries) > LEAF_ENTRIES:
            self._split(leaf)
        self._keep_small()

    def remove(self, row: int) -> None:
        leaf = self._leaf_of(row)
        leaf.entries.remove(row)
        self._touch(leaf)
        self._records.delete(leaf_key(row))
        self._add_up(leaf, -1)
        if not leaf.entries:
            self._drop(leaf)
        self._keep_small()

    def write(self) -> None:
        for node in self._nodes.values():
            if node.changed:
                self._records.put(node_key(node.number), _encode(node))
                node.changed = False

    def _descend(self, position: int) -> tuple[_Node, int]:
        node = self._node(self.root)
        while node.counts is not None:
            place = 0
            while position >= node.counts[place]:
                position -= node.counts[place]
                place += 1
            node = self._node(node.entries[place])
        return node, position

    def _leaf_of(self, row: int) -> _Node:
        found = self._records.get(leaf_key(row))
        assert found is not None, f"row {row} has no leaf"
        return self._node(_NUMBER.unpack(found)[0])

    def _add_up(self, node: _Node, count: int) -> None:
        while node.parent:
            parent = self._node(node.parent)
            assert parent.counts is not None
            parent.counts[parent.entries.index(node.number)] += count
            self._touch(parent)
            node = parent

    def _split(self, node: _Node) -> None:
        """Appending leaves a full node behind; anywhere else halves are what serves best on average."""
        last = node.counts is None and self._is_last(node)
        cut = len(node.entries) - 1 if last else len(node.entries) // 2
        counts = None if node.counts is None else node.counts[cut:]
        right = self._new(node.parent, node.entries[cut:], counts)
        del node.entries[cut:]
        if node.counts is not None:
            del node.counts[cut:]
        self._touch(node)
        for entry in right.entries:
            if right.counts is None:
                self._put_leaf(entry, right)
            else:
                child = self._node(entry)
                child.parent = right.number
                self._touch(child)
        self._link(node, right)

    def _link(self, left: _Node, right: _Node) -> None:
        if not left.parent:
            root = self._new(0, array("Q", [left.number]), array("Q", [left.total]))
            left.parent = right.parent = self.root = root.number
        parent = self._node(left.parent)
        assert parent.counts is not None
        place = parent.entries.index(left.number)
        parent.counts[place] = left.total
        parent.entries.insert(place + 1, right.number)
        parent.counts.insert(place + 1, right.total)
        self._touch(parent)
        if len(parent.entries) > INNER_ENTRIES:
            self._split(parent)

    def _is_last(self, node: _Node) -> bool:
        while node.parent:
            parent = self._node(node.parent)
            if parent.entries[-1] != node.number:
                return False
            node = parent
        return True

    def _drop(self, node: _Node) -> None:
        """An empty node goes, and a root with one child. Nodes that are only poor stay as they are."""
        self._forget(node)
        if not node.parent:
            self.root = 0
            return
        parent = self._node(node.parent)
        assert parent.counts is not None
        place = parent.entries.index(node.number)
        del parent.entries[place], parent.counts[place]
        self._touch(parent)
        if not parent.entries:
            self._drop(parent)
        elif len(parent.entries) == 1 and not parent.parent:
            self._forget(parent)
            child = self._node(parent.entries[0])
            child.parent, self.root = 0, child.number
            self._touch(child)

    def _new(self, parent: int, entries: array[int], counts: array[int] | None) -> _Node:
        node = _Node(self.next_node, parent, entries, counts)
        self.next_node += 1
        self._nodes[node.number] = node
        self._touch(node)
        return node

    def _forget(self, node: _Node) -> None:
        self._nodes.pop(node.number, None)
        self._records.delete(node_key(node.number))

    def _touch(self, node: _Node) -> None:
        node.changed = True

    def _put_leaf(self, row: int, leaf: _Node) -> None:
        self._records.put(leaf_key(row), _NUMBER.pack(leaf.number))

    def _node(self, number: int) -> _Node:
        node = self._nodes.get(number)
        if node is None:
            found = self._records.get(node_key(number))
            assert found is not None, f"node {number} is missing"
            node = self._nodes[number] = _decode(number, found)
        return node

    def _keep_small(self) -> None:
        """Between two changes only: within one, nodes that are held would be read a second time."""
        if len(self._nodes) > _CACHED_NODES:
            self.write()
            self._nodes.clear()


def _encode(node: _Node) -> bytes:
    numbers = node.entries
    if node.counts is not None:
        numbers = array("Q", bytes(16 * len(node.entries)))
        numbers[0::2], numbers[1::2] = node.entries, node.counts
    return _HEAD.pack(b"L" if node.counts is None else b"I", node.parent) + _little(numbers).tobytes()


def _decode(number: int, data: bytes) -> _Node:
    kind, parent = _HEAD.unpack_from(data)
    numbers = array("Q")
    numbers.frombytes(data[_HEAD.size :])
    numbers = _little(numbers)
    if kind == b"L":
        return _Node(number, parent, numbers, None)
    return _Node(number, parent, numbers[0::2], numbers[1::2])


def _little(numbers: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return numbers
    swapped = numbers[:]
    swapped.byteswap()
    return swapped
