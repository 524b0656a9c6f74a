"""What a data set must offer to be read by the classes of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Rows(Protocol):
    """Numbered rows that do not change while they are read.

    Laws: thread-safe; usable in a forked child; picklable by what opens it again, so that loader workers
    under "spawn" read for themselves. `kara_cache.storage.rows.RowDataset` and `ObjectMap` are such.
    """

    def __len__(self) -> int: ...

    def read_batch(self, indices: Sequence[int]) -> list[Any]:
        """The rows of these numbers, in this order, repeated where a number is. May take one request.

        Raises IndexError for a number outside of 0 to len - 1.
        """
        ...


def check_rows(rows: object) -> None:
    """Raises TypeError for what is no `Rows`, where it is passed in and not in some worker later."""
    if not isinstance(rows, Rows):
        raise TypeError(
            f"rows need __len__ and read_batch(indices), {type(rows).__name__} has not both; "
            "MemoryRows(sequence) gives them to a list"
        )


class MemoryRows:
    """Rows of a sequence in memory: for tests, and for data that is small."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read_batch(self, indices: Sequence[int]) -> list[Any]:
        if indices and min(indices) < 0:
            raise IndexError(f"row {min(indices)} of {len(self._rows)}")
        return [self._rows[index] for index in indices]
