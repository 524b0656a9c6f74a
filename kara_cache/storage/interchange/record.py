"""What every format becomes on its way in, and is made from on its way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Record(NamedTuple):
    key: str | None  # that the source has for the row
    row: Any


Progress = Callable[[int, int | None], None]
"""Called after each row with the rows so far, and how many there are where that is known."""


class RowSink(Protocol):
    """A row data set that is open to write."""

    def write(self, obj: Any, /) -> object: ...


@runtime_checkable
class KeyedSink(Protocol):
    """A table."""

    def put_records(self, records: Iterable[tuple[str | None, Any]]) -> None:
        """A record without a key is appended, one with a key takes the place of the row it had."""
        ...


class RowSource(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class KeyedRows(Protocol):
    def items(self) -> Iterable[tuple[str, Any]]: ...
