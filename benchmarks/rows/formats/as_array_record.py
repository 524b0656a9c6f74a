"""array_record, one row a group as its random access needs; uncompressed, its fastest setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

_READ_ROWS = 1024


def write(rows: Iterator[bytes], home: str) -> None:
    writer = ArrayRecordWriter(f"{home}/rows.array_record", "group_size:1,uncompressed")
    for row in rows:
        writer.write(row)
    writer.close()


class Reader:
    def __init__(self, home: str, decode: Any) -> None:
        path = f"{home}/rows.array_record"
        # Each way to read wants a reader of its own: read-ahead ruins random access, and threads, which
        # help with many rows at once, take a hundred times as long as a single one.
        self._sequential = ArrayRecordReader(path)
        self._batches = ArrayRecordReader(path, "readahead_buffer_size:0")
        self._single = ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
        self._count = self._single.num_records()
        self._decode = decode

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, index: int) -> Any:
        self._single.seek(index)
        row = self._single.read()
        return row if self._decode is None else self._decode(row)

    def __iter__(self) -> Iterator[Any]:
        decode = self._decode
        for at in range(0, self._count, _READ_ROWS):
            for row in self._sequential.read(at, min(at + _READ_ROWS, self._count)):
                yield row if decode is None else decode(row)

    def batch(self, indices: list[int]) -> list[Any]:
        rows = self._batches.read(list(indices))
        return list(rows) if self._decode is None else [self._decode(row) for row in rows]
