"""kara-storage 2.1.5 from PyPI, with its own serializers and its own datasets for PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kara_storage
from kara_storage.serialization import JSONSerializer, NoSerializer


def write(rows: Iterator[bytes], home: str) -> None:
    dataset = kara_storage.KaraStorage(f"file://{home}").open_dataset(
        "bench", "rows", "w", version="1", serialization=NoSerializer()
    )
    for row in rows:
        dataset.write(row)
    dataset.close()


class Reader:
    def __init__(self, home: str, decode: Any) -> None:
        self._serializer = NoSerializer if decode is None else JSONSerializer
        self._home = home
        self._rows = self._open()

    def _open(self) -> Any:
        return kara_storage.KaraStorage(f"file://{self._home}").open_dataset(
            "bench", "rows", "r", version="1", serialization=self._serializer()
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Any]:
        self._rows.seek(0)
        return iter(self._rows)

    def shuffled(self) -> Iterator[Any]:
        return iter(kara_storage.make_torch_dataset(self._open(), shuffle=True))

    def dataset(self, shuffle: bool) -> Any:
        return kara_storage.make_torch_dataset(self._open(), shuffle=shuffle)
