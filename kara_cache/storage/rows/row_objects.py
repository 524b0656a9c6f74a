"""Objects made of rows, by the serializer of a data set."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from kara_cache.errors import FormatError
from kara_cache.serialization import NoSerializer, Serializer
from kara_cache.storage.rows.row_reader import Row
from kara_cache.storage.rows.row_version import RowVersion


class FetchedRows:
    """Rows that are in memory, and become objects when they are iterated over."""

    def __init__(
        self, objects: RowObjects, numbers: Sequence[int], rows: Sequence[Row], *, at_hand: bool = False
    ) -> None:
        self._objects = objects
        self._numbers = numbers
        self._rows = rows
        self.at_hand = at_hand
        """Whether all of them lay on this machine, so that nobody was waited for."""

    @property
    def nbytes(self) -> int:
        return sum(map(len, self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._objects.lazily(self._numbers, self._rows))

    def own_rows(self) -> list[bytes]:
        """Rows that keep no other memory alive than their own, for who keeps some of them."""
        rows = self._rows
        return [row if isinstance(row, bytes) else bytes(row) for row in rows]

    def replaced(self, numbers: Sequence[int], rows: Sequence[Row]) -> FetchedRows:
        """Others of the same data set, which were fetched before."""
        return FetchedRows(self._objects, numbers, rows)


class RowObjects:
    """A row that the serializer cannot read is a FormatError that names it. Thread-safe as it is."""

    decode: Callable[[Any], Any] | None
    """Of one row; None where rows are what they are. After a ValueError `one` has the last word."""

    def __init__(self, serializer: Serializer, version: RowVersion) -> None:
        self.serializer = serializer
        self._version = version
        self.wants_bytes = not serializer.takes_buffers
        self.decode = None
        if type(serializer) is not NoSerializer:
            self.decode = serializer.quick or serializer.deserialize

    def one(self, number: int, row: Row) -> Any:
        if self.decode is None:
            return row
        try:
            return self.serializer.deserialize(row)  # type: ignore[arg-type]  # views where it takes them
        except ValueError as exc:
            raise FormatError(f"row {number} cannot be read: {exc} ({self._version})") from exc

    def all(self, numbers: Sequence[int], rows: Sequence[Row]) -> list[Any]:
        rows = self.plain(rows)
        if self.decode is None:
            return rows if isinstance(rows, list) else list(rows)
        try:
            return list(map(self.decode, rows))
        except ValueError:
            return [self.one(number, row) for number, row in zip(numbers, rows, strict=True)]

    def lazily(self, numbers: Sequence[int], rows: Sequence[Row]) -> Iterable[Any]:
        """Each as it is taken: a batch of objects at once is work for the garbage collector."""
        rows = self.plain(rows)
        return rows if self.decode is None else self._each(self.decode, numbers, rows)

    def plain(self, rows: Sequence[Row]) -> Sequence[Row]:
        """As bytes, for serializers that expect no views."""
        if not self.wants_bytes or not rows or isinstance(rows[0], bytes):
            return rows
        return [bytes(row) for row in rows]

    def _each(
        self, decode: Callable[[Any], Any], numbers: Sequence[int], rows: Sequence[Row]
    ) -> Iterator[Any]:
        left = iter(rows)
        while True:
            try:
                yield from map(decode, left)
                return
            except ValueError:
                at = len(rows) - operator.length_hint(left) - 1
            yield self.one(numbers[at], rows[at])
