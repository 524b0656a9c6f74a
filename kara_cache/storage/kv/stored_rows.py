"""Rows of bytes with a key each and an order, in one table of a database.

Records of the table, by the first byte of their key; numbers in keys are big-endian, elsewhere little:

    "m"            | "KARAROWS" 8 | version 2 = 1 | zero 6 | next row 8 | next node 8 | root node 8 |
                   | serializer's name, UTF-8 ... |
    "i" key        | row 8 |
    "r" row 8      | key bytes 2 | key | the row as the serializer made it ... |
    "n" node 8     of the order, see order_tree.py
    "w" row 8      | leaf 8 |

Row numbers are given once and never again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kara_cache.errors import ConfigError, FormatError
from kara_cache.storage.kv.keys import MAX_KEY_BYTES
from kara_cache.storage.kv.order_tree import OrderTree, Records, _Node

MAX_ROW_KEY_BYTES = MAX_KEY_BYTES - 1
_META = b"m"
_HEAD = struct.Struct("<8sH6xQQQ")
_MAGIC, _VERSION = b"KARAROWS", 1
_NUMBER = struct.Struct("<Q")
_KEY_BYTES = struct.Struct("<H")


def key_record(key: str) -> bytes:
    """Raises ValueError naming the limit, TypeError for what is no text."""
    if not isinstance(key, str):
        raise TypeError(f"a row's key is str, got {type(key).__name__}")
    found = b"i" + key.encode()
    if not 1 < len(found) <= MAX_KEY_BYTES:
        raise ValueError(
            f"a row's key has 1 to {MAX_ROW_KEY_BYTES} bytes of UTF-8, got {len(found) - 1}: {key[:40]!r}"
        )
    return found


class StoredRows:
    """One transaction's view of them. `write` puts what is left to be put, before it commits."""

    def __init__(self, records: Records, serializer: str, cache: dict[int, _Node] | None = None) -> None:
        self._records = records
        self._serializer = serializer
        self._changed = False
        self.next_row, next_node, root = self._read_meta()
        self.order = OrderTree(records, root, next_node, cache)

    def __len__(self) -> int:
        return len(self.order)

    def find(self, key: str) -> int | None:
        """The row's number."""
        found = self._records.get(key_record(key))
        return None if found is None else int(_NUMBER.unpack(found)[0])

    def read(self, row: int) -> tuple[str, bytes]:
        """The row's key and content."""
        found = self._records.get(_row_key(row))
        assert found is not None, f"row {row} is missing"
        stop = _KEY_BYTES.size + _KEY_BYTES.unpack_from(found)[0]
        return found[_KEY_BYTES.size : stop].decode(), found[stop:]

    def items(self, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
        for row in self.order.rows(start, stop):
            yield self.read(row)

    def insert(self, position: int, key: str, content: bytes) -> None:
        """The caller has looked that the key is new."""
        row, self.next_row = self.next_row, self.next_row + 1
        self._changed = True
        self._records.put(key_record(key), _NUMBER.pack(row))
        self.replace(row, key, content)
        self.order.insert(position, row)

    def replace(self, row: int, key: str, content: bytes) -> None:
        name = key.encode()
        self._records.put(_row_key(row), b"".join((_KEY_BYTES.pack(len(name)), name, content)))

    def remove(self, row: int) -> str:
        key, _ = self.read(row)
        self.order.remove(row)
        self._records.delete(_row_key(row))
        self._records.delete(key_record(key))
        self._changed = True
        return key

    def rebuild_order(self) -> None:
        """Nodes that deletions left half empty are filled again."""
        rows = list(self.order.rows(0, len(self.order)))
        for row in rows:
            self.order.remove(row)
        for position, row in enumerate(rows):
            self.order.insert(position, row)
        self._changed = True

    def write(self) -> None:
        self.order.write()
        head = _HEAD.pack(_MAGIC, _VERSION, self.next_row, self.order.next_node, self.order.root)
        self._records.put(_META, head + self._serializer.encode())

    def _read_meta(self) -> tuple[int, int, int]:
        found = self._records.get(_META)
        if found is None:
            return 0, 1, 0
        if len(found) < _HEAD.size or not found.startswith(_MAGIC):
            raise FormatError(f"not a table of rows: its head begins with {found[:8]!r}")
        _, version, next_row, next_node, root = _HEAD.unpack_from(found)
        if version != _VERSION:
            raise FormatError(f"a table of rows of version {version}; this release reads {_VERSION}")
        written_with = found[_HEAD.size :].decode()
        if written_with != self._serializer:
            raise ConfigError(f"the rows were written with {written_with}, got {self._serializer}")
        return next_row, next_node, root


def _row_key(row: int) -> bytes:
    return b"r" + row.to_bytes(8, "big")
