"""A map-style data set over rows: a batch is one read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from kara_cache.torch.rows import Rows, check_rows


class RowMap(Dataset):
    """Rows by number, for any sampler. A loader fetches each batch by one `read_batch`.

    Args:
        decode: Called with each row where it is fetched.
    """

    def __init__(self, rows: Rows, *, decode: Callable[[Any], Any] | None = None) -> None:
        check_rows(rows)
        self.rows = rows
        self._decode = decode

    def __repr__(self) -> str:
        return f"<RowMap of {len(self)} rows>"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """Negative numbers count from the end; IndexError beyond it."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        count = len(self)
        numbers = [index + count if index < 0 else index for index in map(int, indices)]
        if numbers and not 0 <= min(numbers) <= max(numbers) < count:
            wrong = next(number for number in numbers if not 0 <= number < count)
            raise IndexError(f"row {wrong} of {count}")
        rows = self.rows.read_batch(numbers)
        return rows if self._decode is None else [self._decode(row) for row in rows]
