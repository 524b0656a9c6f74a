"""LMDB with integer keys. Rows are bytes, as everywhere here; decoders get buffers without a copy.

A buffer that nobody looks into costs LMDB nothing but finding it, which is no row that was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import lmdb

_COMMIT_ROWS = 10_000
_MAP_BYTES = 64 << 30


def write(rows: Iterator[bytes], home: str) -> None:
    with lmdb.open(home, map_size=_MAP_BYTES, sync=False, readahead=False) as env:
        number = 0
        while part := list(islice(rows, _COMMIT_ROWS)):
            with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                items = [((number + i).to_bytes(8, "big"), row) for i, row in enumerate(part)]
                cursor.putmulti(items, append=True)
            number += len(part)
        env.sync(True)


@cache
def _environment(pid: int, home: str) -> Any:
    """One for each process: LMDB refuses a second one, and one from before a fork."""
    return lmdb.open(home, readonly=True, lock=False, readahead=False, map_size=_MAP_BYTES)


START_METHOD = "spawn"  # of a loader's workers: it must not be open across a fork


class Reader:
    def __init__(self, home: str, decode: Any) -> None:
        self._env = _environment(os.getpid(), home)
        self._transaction = self._env.begin(buffers=decode is not None)
        self._count = self._env.stat()["entries"]
        self._keys = [i.to_bytes(8, "big") for i in range(self._count)]
        self._decode = decode

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, index: int) -> Any:
        row = self._transaction.get(self._keys[index])
        return row if self._decode is None else self._decode(row)

    def __iter__(self) -> Iterator[Any]:
        decode = self._decode
        values = self._transaction.cursor().iternext(keys=False)
        return values if decode is None else map(decode, values)

    def batch(self, indices: list[int]) -> list[Any]:
        keys, get = self._keys, self._transaction.get
        rows = [get(keys[i]) for i in indices]
        return rows if self._decode is None else [self._decode(row) for row in rows]
