"""litdata: chunks of 64 MB and its own StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import litdata
from litdata.streaming.writer import BinaryWriter


def write(rows: Iterator[bytes], home: str) -> None:
    # What `litdata.optimize` does in each of its worker processes, without starting any.
    os.environ.update(DATA_OPTIMIZER_GLOBAL_RANK="0", DATA_OPTIMIZER_NUM_WORKERS="1")
    writer = BinaryWriter(home, chunk_bytes="64MB")
    for number, row in enumerate(rows):
        writer.add_item(number, row)
    writer.done()
    writer.merge(1)


def loader(dataset: Any, **options: Any) -> Any:
    return litdata.StreamingDataLoader(dataset, **options)


class Reader:
    def __init__(self, home: str, decode: Any) -> None:
        self._home = home
        self._decode = decode
        self._rows = _Decoded(home, decode, False)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(_Decoded(self._home, self._decode, False))

    def shuffled(self) -> Iterator[Any]:
        return iter(_Decoded(self._home, self._decode, True))

    def dataset(self, shuffle: bool) -> Any:
        return _Decoded(self._home, self._decode, shuffle)


class _Decoded(litdata.StreamingDataset):  # type: ignore[misc]
    def __init__(self, home: str, decode: Any, shuffle: bool) -> None:
        super().__init__(home, shuffle=shuffle, seed=1)
        self._decodes = decode is not None

    def __getitem__(self, index: Any) -> Any:
        row = super().__getitem__(index)
        if not self._decodes:
            return row
        import msgspec

        return msgspec.json.decode(row)
