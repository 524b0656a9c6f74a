"""The rows of a table that are objects in this process, kept in step with what is stored."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kara_cache.checksum import checksum
from kara_cache.serialization import Serializer
from kara_cache.storage.kv.row_form import WrittenRow
from kara_cache.storage.kv.row_pool import ChangedRow, RowPool, is_atom
from kara_cache.storage.kv.stored_rows import StoredRows
from kara_cache.storage.kv.table_sessions import TableSessions

ABSENT: Any = object()
"""In place of a row, which can be None."""


class TablePool:
    """Thread-safe. It belongs to one process: a forked child begins with an empty one.

    Writes come into the pool in the order of their commits. Rows that a batch has written are there for its
    thread alone; others get what is committed, and keep no row of a key that the batch is about to change.
    """

    def __init__(
        self, sessions: TableSessions, serialization: Serializer, size: int, *, writable: bool
    ) -> None:
        self._sessions = sessions
        self._serialization = serialization
        self._writable = writable
        self._lock = threading.RLock()  # guards all below; nobody waits for a writer under it
        self._rows = RowPool(size)
        self._changes = 0  # that this process made: what was read before one may be outdated
        self._uncommitted: set[str] = set()  # keys that the batch that goes on has written or deleted

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def changes(self) -> int:
        """Ask before you read what you `take_in`."""
        return self._changes

    def get(self, key: str) -> Any:
        """The row, or ABSENT."""
        with self._lock:
            pooled = None if self._is_hidden(key) else self._rows.get(key)
            # The row itself, still under the lock: from then on it is held, and does not leave.
            return ABSENT if pooled is None else pooled.row

    def take_in(self, key: str, content: bytes, changes: int) -> Any:
        """The pool's row of the key, or `content` as one; ABSENT where that may not be stored any more."""
        with self._lock:
            hidden = self._is_hidden(key)
            pooled = None if hidden else self._rows.get(key)
            if pooled is not None:
                return pooled.row
            if changes != self._changes:
                return ABSENT
            row = self._serialization.deserialize(content)
            if hidden:
                return row
            stored = None
            if self._writable and not is_atom(row):
                # Not of `content`, which may be spelled in another way and would look changed for ever.
                stored = checksum(self._serialization.serialize(row))
            self._rows.add(key, row, stored)
        self._make_room()
        return row

    @contextmanager
    def writing(self) -> Iterator[tuple[StoredRows, list[WrittenRow]]]:
        """A transaction, and a list of what is written in it, which the pool takes over."""
        written: list[WrittenRow] = []
        with self._sessions.write(lambda: self._add(written)) as stored:
            yield stored, written
        self._make_room()

    @contextmanager
    def deleting(self) -> Iterator[tuple[StoredRows, list[str]]]:
        """The same for the keys of rows that are deleted."""
        keys: list[str] = []
        with self._sessions.write(lambda: self._drop(keys)) as stored:
            yield stored, keys

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What this thread writes in the block, and what was changed in place, is one transaction."""
        self.flush()
        written: list[ChangedRow] = []
        with self._sessions.batch(lambda: self._mark_stored(written), self._undo) as stored:
            yield
            written += self._write_back(stored)

    def clear(self) -> None:
        with self._lock:
            self._changes += 1
            self._rows.clear()

    def flush(self) -> None:
        with self._lock:
            waiting = bool(self._rows.changed(self._serialization))
        if waiting:
            written: list[ChangedRow] = []
            with self._sessions.write(lambda: self._mark_stored(written)) as stored:
                written += self._write_back(stored)

    def _is_hidden(self, key: str) -> bool:
        return key in self._uncommitted and self._sessions.own_batch is None

    def _add(self, written: list[WrittenRow]) -> None:
        with self._lock:
            self._note(key for key, _, _ in written)
            for key, row, content in written:
                self._rows.add(key, row, None if is_atom(row) else checksum(content))
        written.clear()  # they would count as held

    def _drop(self, keys: list[str]) -> None:
        with self._lock:
            self._note(keys)
            for key in keys:
                self._rows.drop(key)

    def _undo(self) -> None:
        with self._lock:
            self._uncommitted.clear()
            self.clear()

    def _note(self, keys: Iterable[str]) -> None:
        self._changes += 1
        if self._sessions.own_batch is not None:
            self._uncommitted.update(keys)

    def _write_back(self, stored: StoredRows) -> list[ChangedRow]:
        with self._lock:
            changed = self._rows.changed(self._serialization)
        _write(stored, changed)
        return changed

    def _mark_stored(self, written: list[ChangedRow]) -> None:
        """What failed to be written is still to be, so this follows the commit."""
        with self._lock:
            self._note(key for key, _, _ in written)
            if self._sessions.own_batch is None:
                self._uncommitted.clear()  # we are the writer, and in no batch any more
            for _, pooled, content in written:
                pooled.stored = checksum(content)

    def _make_room(self) -> None:
        """Rows leave, after those that changed are written. Put off while somebody else writes."""
        with self._lock:
            if not self._rows.is_full:
                return
            leaving = self._rows.leaving()
            changed = self._rows.changed(self._serialization, leaving)
            unwritten = {key for key, _, _ in changed}
            if changed:
                with (
                    suppress(TimeoutError),
                    self._sessions.write(lambda: self._mark_stored(changed), wait=False) as stored,
                ):
                    _write(stored, changed)
                    unwritten = set()
            for key in leaving:
                if key not in unwritten:
                    self._rows.drop(key)
            self._rows.settle()


def _write(stored: StoredRows, changed: list[ChangedRow]) -> None:
    for key, _, content in changed:
        number = stored.find(key)
        if number is not None:  # else another process has deleted it
            stored.replace(number, key, content)
