"""In what form a row comes into a table: under which key, and as which bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kara_cache.serialization import Serializer
from kara_cache.storage.kv.row_places import insertion_at
from kara_cache.storage.kv.stored_rows import StoredRows, key_record

KeyOf = str | Callable[[Any], str]
WrittenRow = tuple[str, Any, bytes]
"""Its key, the row, and what is stored of it."""


@dataclass(frozen=True, slots=True)
class RowForm:
    """`key` says where a row has its key, a field's name or a function; None: in itself it has none."""

    table: str
    serialization: Serializer
    key: KeyOf | None

    def append(self, stored: StoredRows, key: str | None, row: Any) -> WrittenRow:
        return self.insert(stored, None, key, row)

    def insert(self, stored: StoredRows, position: int | None, key: str | None, row: Any) -> WrittenRow:
        """Before the row at `position`, at the end if None. Raises ValueError where the key is taken."""
        if key is None:
            key = self._key_of(row)
        if key is None:
            key = f"#{stored.next_row}"
            while stored.find(key) is not None:
                key += "'"
        elif stored.find(key) is not None:
            raise ValueError(
                f"{self.table}: there is a row {key!r} already; table[{key!r}] = row replaces it"
            )
        content = self.serialization.serialize(row)
        count = len(stored)
        stored.insert(count if position is None else insertion_at(position, count), key, content)
        return key, row, content

    def put(self, stored: StoredRows, key: str | None, row: Any) -> WrittenRow:
        """In place of the row of this key, at the end where there is none."""
        number = None if key is None else stored.find(key)
        if key is None or number is None:
            return self.append(stored, key, row)
        return self.replace(stored, number, key, row)

    def replace(self, stored: StoredRows, number: int, key: str, row: Any) -> WrittenRow:
        content = self.serialization.serialize(row)
        stored.replace(number, key, content)
        return key, row, content

    def _key_of(self, row: Any) -> str | None:
        if self.key is None:
            return None
        found = row[self.key] if isinstance(self.key, str) else self.key(row)
        key_record(found)
        return str(found)
