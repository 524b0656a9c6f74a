"""kara_cache: KaraStorage rows and its datasets for PyTorch, verification on.

The place is a directory, or a JSON document {"url": ..., "options": {...}} for rows anywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kara_cache import KaraStorage
from kara_cache.serialization import JSONSerializer, NoSerializer

NAMESPACE, KEY, VERSION = "bench", "rows", "1"
BATCH_ROWS = 256


def _storage(place: str) -> KaraStorage:
    if place.startswith("{"):
        found = json.loads(place)
        return KaraStorage(found["url"], **found["options"])
    return KaraStorage(f"file://{place}")


def write(rows: Iterator[bytes], place: str) -> None:
    storage = _storage(place)
    with storage.open_dataset(NAMESPACE, KEY, "w", VERSION, serialization=NoSerializer()) as dataset:
        for row in rows:
            dataset.write(row)


class Reader:
    def __init__(self, place: str, decode: Any) -> None:
        serializer = NoSerializer() if decode is None else JSONSerializer()
        self._rows = _storage(place).open_dataset(NAMESPACE, KEY, "r", VERSION, serialization=serializer)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def batch(self, indices: list[int]) -> list[Any]:
        return self._rows.read_batch(indices)

    def shuffled(self) -> Iterator[Any]:
        """In the order that kara-storage gives, which is what the other formats do here as well."""
        from kara_cache import make_torch_dataset

        return iter(make_torch_dataset(self._rows, shuffle=True))

    def streamed(self) -> Iterator[Any]:
        """A true permutation that can be entered anywhere, read in advance by a thread."""
        from kara_cache.torch import RowStream

        return iter(RowStream(self._rows, batch_size=BATCH_ROWS))

    def dataset(self, shuffle: bool) -> Any:
        """Map-style: the sampler of the loader shuffles, all rows, and asks for batches."""
        from kara_cache.torch import RowMap

        return RowMap(self._rows)
