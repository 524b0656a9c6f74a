"""The limit in Python: one file, offsets in memory, slices of a mapping. No checksums, no versions."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from mmap import PROT_READ, mmap
from typing import Any


def write(rows: Iterator[bytes], home: str) -> None:
    ends, at = array("Q"), 0
    with open(f"{home}/data", "wb", buffering=1 << 20) as out:
        for row in rows:
            out.write(row)
            at += len(row)
            ends.append(at)
        out.flush()
        os.fsync(out.fileno())
    with open(f"{home}/ends", "wb") as out:
        out.write(ends.tobytes())
        out.flush()
        os.fsync(out.fileno())


class Reader:
    def __init__(self, home: str, decode: Any) -> None:
        with open(f"{home}/ends", "rb") as file:
            self._starts = [0, *array("Q", file.read())]
        with open(f"{home}/data", "rb") as file:
            self._data = mmap(file.fileno(), 0, prot=PROT_READ)
        self._decode = decode

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Any:
        row = self._data[self._starts[index] : self._starts[index + 1]]
        return row if self._decode is None else self._decode(row)

    def __iter__(self) -> Iterator[Any]:
        data, decode, start = self._data, self._decode, 0
        for stop in self._starts[1:]:
            row = data[start:stop]
            yield row if decode is None else decode(row)
            start = stop

    def batch(self, indices: list[int]) -> list[Any]:
        data, starts, decode = self._data, self._starts, self._decode
        rows = [data[starts[i] : starts[i + 1]] for i in indices]
        return rows if decode is None else [decode(row) for row in rows]
