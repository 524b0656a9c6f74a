"""The rows of a table that are objects in this process, kept in step with what is stored."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from kara_cache.checksum import checksum
from kara_cache.serialization import Serializer
from kara_cache.storage.kv.row_form import WrittenRow
from kara_cache.storage.kv.row_pool import ChangedRow, PooledRow, RowPool, is_atom
from kara_cache.storage.kv.stored_rows import StoredRows
from kara_cache.storage.kv.table_sessions import TableSessions

OUTDATED: Any = object()


class TablePool:
    """Thread-safe. It belongs to one process: a forked child begins with an empty one."""

    def __init__(
        self, sessions: TableSessions, serialization: Serializer, size: int, *, writable: bool
    ) -> None:
        self._sessions = sessions
        self._serialization = serialization
        self._writable = writable
        self._lock = threading.RLock()  # guards _rows and _changes; nobody waits for a writer under it
        self._rows = RowPool(size)
        self._changes = 0  # that this process made: what was read before one may be outdated

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def changes(self) -> int:
        """Ask before you read what you `take_in`."""
        return self._changes

    def get(self, key: str) -> PooledRow | None:
        with self._lock:
            return self._rows.get(key)

    def take_in(self, key: str, content: bytes, changes: int) -> Any:
        """The pool's row of the key, or `content` as one; OUTDATED where that may not be stored any more."""
        with self._lock:
            pooled = self._rows.get(key)
            if pooled is not None:
                return pooled.row
            if changes != self._changes:
                return OUTDATED
            row = self._serialization.deserialize(content)
            stored = None
            if self._writable and not is_atom(row):
                # Not of `content`, which may be spelled in another way and would look changed for ever.
                stored = checksum(self._serialization.serialize(row))
            self._rows.add(key, row, stored)
        self._make_room()
        return row

    def add(self, written: list[WrittenRow]) -> None:
        """Takes over what was written: the list is empty afterwards."""
        with self._lock:
            self._changes += 1
            for key, row, content in written:
                self._rows.add(key, row, None if is_atom(row) else checksum(content))
        written.clear()  # they would count as held
        self._make_room()

    def drop(self, keys: Iterable[str]) -> None:
        """They were deleted."""
        with self._lock:
            self._changes += 1
            for key in keys:
                self._rows.drop(key)

    def clear(self) -> None:
        with self._lock:
            self._changes += 1
            self._rows.clear()

    def flush(self) -> None:
        with self._lock:
            waiting = bool(self._rows.changed(self._serialization))
        if waiting:
            with self._sessions.write() as stored:
                written = self.write_back(stored)
            self.mark_stored(written)

    def write_back(self, stored: StoredRows) -> list[ChangedRow]:
        """Writes what was changed in place; after the commit it goes to `mark_stored`."""
        with self._lock:
            changed = self._rows.changed(self._serialization)
            self._write(stored, changed)
            return changed

    def mark_stored(self, written: list[ChangedRow]) -> None:
        """After the commit: what failed to be written is still to be."""
        for _, pooled, content in written:
            pooled.stored = checksum(content)

    def _write(self, stored: StoredRows, changed: list[ChangedRow]) -> None:
        self._changes += bool(changed)
        for key, _, content in changed:
            number = stored.find(key)
            if number is not None:  # else another process has deleted it
                stored.replace(number, key, content)

    def _make_room(self) -> None:
        """Rows leave, after those that changed are written. Put off while somebody else writes."""
        with self._lock:
            if not self._rows.is_full:
                return
            leaving = self._rows.leaving()
            changed = self._rows.changed(self._serialization, leaving)
            written: list[ChangedRow] = []
            if changed:
                with suppress(TimeoutError), self._sessions.write(wait=False) as stored:
                    self._write(stored, changed)
                    written, changed = changed, []
                self.mark_stored(written)
            unwritten = {key for key, _, _ in changed}
            for key in leaving:
                if key not in unwritten:
                    self._rows.drop(key)
            self._rows.settle()
