"""What a write transaction did so far, to do it again when the map had to grow under it."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

_HEAD = struct.Struct("<BIHQ")  # op, table, key bytes, value bytes
_MEMORY_BYTES = 16 << 20  # beyond it in a file: LMDB holds the same bytes in memory already
_OPS = ("put", "delete", "drop")
Op = Literal["put", "delete", "drop"]


class Step(NamedTuple):
    op: Op
    table: str | None
    key: bytes
    value: bytes


class Journal:
    """In memory up to 16 MiB, then in a temporary file without a name."""

    def __init__(self) -> None:
        self._tables: list[str | None] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115 - closed by close()
        self._stop = 0

    def add(
        self, op: Op, table: str | None, key: bytes = b"", value: bytes | bytearray | memoryview = b""
    ) -> None:
        if table not in self._tables:
            self._tables.append(table)
        self._file.seek(self._stop)
        head = _HEAD.pack(_OPS.index(op), self._tables.index(table), len(key), len(value))
        for part in (head, key, value):
            self._file.write(part)
        self._stop = self._file.tell()

    def __iter__(self) -> Iterator[Step]:
        at = 0
        while at < self._stop:
            self._file.seek(at)
            op, table, key_bytes, value_bytes = _HEAD.unpack(self._file.read(_HEAD.size))
            key, value = self._file.read(key_bytes), self._file.read(value_bytes)
            at = self._file.tell()
            yield Step(_OPS[op], self._tables[table], key, value)  # type: ignore[arg-type]

    def close(self) -> None:
        self._file.close()
