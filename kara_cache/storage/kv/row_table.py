"""A data set while it is being made: a list and a dictionary of rows at once, on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import Any

from kara_cache.checksum import checksum
from kara_cache.serialization import JSONSerializer, Serializer
from kara_cache.storage.kv.database import DB
from kara_cache.storage.kv.row_places import (
    Where,
    insertion_at,
    is_position,
    number_at,
    number_of_key,
    numbers_of,
)
from kara_cache.storage.kv.row_pool import ChangedRow, RowPool, is_atom
from kara_cache.storage.kv.stored_rows import StoredRows, key_record
from kara_cache.storage.kv.table_sessions import TableSessions

DEFAULT_NAME = "rows"
POOL_ROWS = 1000  # what the table that this one succeeds kept
_CHUNK_ROWS = 1000  # of one transaction of `extend` and `update`
_CHUNK_BYTES = 32 << 20
_READ_ROWS = 64  # that iteration reads at once
_MISSING: Any = object()

KeyOf = str | Callable[[Any], str]


class RowTable:
    """Rows with a key each, in an order. `table["id"]`, `table[3]`, `table[-1]`, slices and lists of either.

    Rows are the objects themselves: a row that is changed after it was got from the table, appended or
    assigned is written back when it leaves the pool, at `flush` and at `close`. The pool keeps the last
    `pool_size` rows, and beyond that number those that somebody still holds, so that no change is lost.

    A method that changes the table has written to disk when it returns, in a transaction of its own; with
    `batch` many are one. `extend` and `update` write up to 1000 rows or 32 MiB at once.

    Costs, for n rows: a row by key one lookup; by position, and insert, delete, append and `index` each
    visit one node of a counting tree per level, three up to 3 million rows, four up to 400 million;
    `len` one node; iteration one node for 240 rows. Rows are never moved: only their numbers are.

    Any number of processes may read while one writes. A reader sees each change when it is committed,
    except in rows of its pool: `reload` forgets those. Writers wait for one another; where two change
    the same row in their pools, the one that writes back last wins. Thread-safe. Forked children, and
    processes that got the table by pickling, begin with what is committed.

    Args:
        db: Where the table is; it is flushed when `db` closes.
        name: Of the table in `db`.
        serialization: How a row becomes bytes; JSON if None. A table is opened with the one that wrote it.
        pool_size: Rows.
        key: Where a row has its key, a field's name or a function; else rows without a given key are
            called "#0", "#1", ...

    Raises:
        KeyError: `db` is open to read and has no such table.
        ConfigError: the table was written with another serialization.
    """

    def __init__(
        self,
        db: DB,
        name: str = DEFAULT_NAME,
        *,
        serialization: Serializer | None = None,
        pool_size: int = POOL_ROWS,
        key: KeyOf | None = None,
    ) -> None:
        self.db = db
        self.name = db.table(name)
        self.serialization = JSONSerializer() if serialization is None else serialization
        self._pool_size = pool_size
        self._key = key
        self._sessions = TableSessions(db, self.name, type(self.serialization).__name__)
        self._begin_life()
        with self._sessions.read():
            pass  # says now what is wrong with the table
        if db.writable:
            db.attach(self)

    def _begin_life(self) -> None:
        self._life = self.db.environment.life
        self._lock = threading.RLock()  # guards _pool and _changes; nobody waits for a writer under it
        self._pool = RowPool(self._pool_size)
        self._changes = 0  # that this process made: what was read before one may be outdated

    # -- reading

    def __len__(self) -> int:
        with self._sessions.read() as stored:
            return len(stored)

    def __contains__(self, key: object) -> bool:
        """Whether there is a row of this key."""
        if not isinstance(key, str):
            return False
        with self._sessions.read() as stored:
            return stored.find(key) is not None

    def __getitem__(self, where: Any) -> Any:
        """A row by key or position, or the list of rows that a slice or a list of either names.

        Raises KeyError, IndexError, TypeError.
        """
        if isinstance(where, str):
            return self._by_key(where)
        if isinstance(where, slice):
            return [self._at(position) for position in range(len(self))[where]]
        if is_position(where):
            return self._at(where)
        if isinstance(where, Iterable):
            return [self[one] for one in where]
        raise TypeError(f"a row is named by int, str, slice or a list of them, got {type(where).__name__}")

    def read_batch(self, indices: Iterable[int]) -> list[Any]:
        """The rows at these positions, in this order; of one state where the table is open to read."""
        if self.db.writable:
            return [self._at(index) for index in indices]
        with self._sessions.read() as stored:
            read = [stored.read(number_at(stored, index)) for index in indices]
        return [self._deserialize(content) for _, content in read]

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self._by_key(key)
        except KeyError:
            return default

    def index(self, key: str) -> int:
        """The position of the row. Raises KeyError."""
        with self._sessions.read() as stored:
            return stored.order.position(number_of_key(stored, key))

    def key_at(self, position: int) -> str:
        """Raises IndexError."""
        with self._sessions.read() as stored:
            return stored.read(number_at(stored, position))[0]

    def __iter__(self) -> Iterator[Any]:
        """The rows in order. What is inserted or deleted meanwhile shifts them, as in a list."""
        return (row for _, row in self.items())

    def values(self) -> Iterator[Any]:
        return iter(self)

    def keys(self) -> Iterator[str]:
        return (key for key, _, _ in self._stored_items())

    def items(self) -> Iterator[tuple[str, Any]]:
        for key, content, changes in self._stored_items():
            if not self.db.writable:
                yield key, self._deserialize(content)
                continue
            row = self._pooled(key, content, changes)
            if row is _MISSING:
                row = self.get(key, _MISSING)
            if row is not _MISSING:
                yield key, row

    def serialized_items(self) -> Iterator[tuple[str, bytes]]:
        """Keys and rows as they are stored, of what is flushed."""
        self.flush()
        return ((key, content) for key, content, _ in self._stored_items())

    # -- writing

    def append(self, row: Any, key: str | None = None) -> str:
        """Adds the row at the end and returns its key. Raises ValueError where the key is taken."""
        return self._insert(None, row, key)

    def insert(self, position: int, row: Any, key: str | None = None) -> str:
        """Adds the row before the one at `position`, which is cut to the table as in `list.insert`."""
        return self._insert(position, row, key)

    def extend(self, rows: Iterable[Any], keys: Iterable[str] | None = None) -> None:
        """Appends the rows. What was written before an error stays."""
        named = ((None, row) for row in rows) if keys is None else zip(keys, rows, strict=True)
        self._write_many(named, self._append_to)

    def update(self, rows: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Replaces the rows of these keys, and appends those that are new."""
        self._write_many(rows.items() if isinstance(rows, Mapping) else rows, self._put_into)

    def put_records(self, records: Iterable[tuple[str | None, Any]]) -> None:
        """As `update`; those without a key are appended."""
        self._write_many(records, self._put_into)

    def __setitem__(self, where: int | str | slice, row: Any) -> None:
        """Replaces a row; under a key that is new, appends it. Rows of a slice are replaced one by one."""
        if isinstance(where, slice):
            self._replace_slice(where, list(row))
            return
        with self._sessions.write() as stored:
            if isinstance(where, str):
                changed = self._put_into(stored, where, row)
            else:
                number = number_at(stored, where)
                changed = self._replace(stored, number, stored.read(number)[0], row)
        self._pool_all([changed])

    def __delitem__(self, where: Where) -> None:
        """Deletes the rows that int, str, slice or a list of them names, all or none."""
        with self._sessions.write() as stored:
            numbers = numbers_of(stored, where)
            keys = [stored.remove(number) for number in numbers]
        with self._lock:
            self._changes += 1
            for key in keys:
                self._pool.drop(key)

    def pop(self, where: int | str = -1) -> Any:
        row = self[where]
        del self[where]
        return row

    def clear(self) -> None:
        """Deletes all rows."""
        if self._sessions.own_batch is not None:
            del self[:]
            return
        with self.db.transaction(table=self.name) as transaction:
            transaction.clear()
        self._forget_all()

    @contextmanager
    def batch(self) -> Iterator[RowTable]:
        """What this thread does in the block is one transaction: all of it, or by an exception nothing."""
        if self._sessions.own_batch is not None:
            raise RuntimeError(f"{self!r}: a batch in a batch")
        self.flush()
        try:
            with self._sessions.batch() as stored:
                yield self
                written = self._write_back(stored)
        except BaseException:
            self._forget_all()
            raise
        self._mark_stored(written)

    def flush(self) -> None:
        """Writes back the rows that were changed in place. Raises what the serializer does for such a row."""
        if not self.db.writable or self._life != self.db.environment.life:
            return
        with self._lock:
            waiting = bool(self._pool.changed(self.serialization))
        if waiting:
            with self._sessions.write() as stored:
                written = self._write_back(stored)
            self._mark_stored(written)

    def reload(self) -> None:
        """Writes back what was changed in place, and forgets all rows: the next access reads them anew."""
        self.flush()
        self._forget_all()

    def prune(self) -> None:
        """Rebuilds the order and rewrites the file of the database without free space. See `DB.prune`."""
        with self._sessions.write() as stored:
            stored.rebuild_order()
        self.db.prune()

    @property
    def physical_size(self) -> int:
        """Bytes of the database's file, in which other tables may be, too."""
        return self.db.physical_size

    def close(self) -> None:
        """Flushes, and closes the database. Idempotent."""
        if not self.db.environment.closed:
            self.db.close()

    def __enter__(self) -> RowTable:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., RowTable], tuple[Any, ...]]:
        return _rebuilt, (self.db, self.name, self.serialization, self._pool_size, self._key)

    def __repr__(self) -> str:
        return f"<RowTable {self.name!r} in {self.db!r}, {len(self._pool)} rows in the pool>"

    # -- one row in and out

    def _by_key(self, key: str) -> Any:
        while True:
            changes = self._renewed_changes()
            with self._lock:
                pooled = self._pool.get(key)
            if pooled is not None:
                return pooled.row
            with self._sessions.read() as stored:
                _, content = stored.read(number_of_key(stored, key))
            row = self._pooled(key, content, changes)
            if row is not _MISSING:
                return row

    def _at(self, position: Any) -> Any:
        while True:
            changes = self._renewed_changes()
            with self._sessions.read() as stored:
                key, content = stored.read(number_at(stored, position))
            row = self._pooled(key, content, changes)
            if row is not _MISSING:
                return row

    def _pooled(self, key: str, content: bytes, changes: int) -> Any:
        """The pool's row of the key, or `content` as one; _MISSING where it may be outdated by now."""
        with self._lock:
            pooled = self._pool.get(key)
            if pooled is not None:
                return pooled.row
            if changes != self._changes:
                return _MISSING
            row = self._deserialize(content)
            stored = None
            if self.db.writable and not is_atom(row):
                # Not of `content`, which may be spelled in another way and would look changed for ever.
                stored = checksum(self.serialization.serialize(row))
            self._pool.add(key, row, stored)
        self._make_room()
        return row

    def _deserialize(self, content: bytes) -> Any:
        return self.serialization.deserialize(content)

    def _insert(self, position: int | None, row: Any, key: str | None) -> str:
        with self._sessions.write() as stored:
            added = self._add(stored, position, key, row)
        self._pool_all([added])
        return added[0]

    def _append_to(self, stored: StoredRows, key: str | None, row: Any) -> _Written:
        return self._add(stored, None, key, row)

    def _put_into(self, stored: StoredRows, key: str | None, row: Any) -> _Written:
        number = None if key is None else stored.find(key)
        if key is None or number is None:
            return self._add(stored, None, key, row)
        return self._replace(stored, number, key, row)

    def _add(self, stored: StoredRows, position: int | None, key: str | None, row: Any) -> _Written:
        if key is None:
            key = self._key_of(row)
        if key is None:
            key = f"#{stored.next_row}"
            while stored.find(key) is not None:
                key += "'"
        elif stored.find(key) is not None:
            raise ValueError(f"{self.name}: there is a row {key!r} already; table[{key!r}] = row replaces it")
        content = self.serialization.serialize(row)
        count = len(stored)
        stored.insert(count if position is None else insertion_at(position, count), key, content)
        return key, row, content

    def _replace(self, stored: StoredRows, number: int, key: str, row: Any) -> _Written:
        content = self.serialization.serialize(row)
        stored.replace(number, key, content)
        return key, row, content

    def _replace_slice(self, where: slice, rows: list[Any]) -> None:
        with self._sessions.write() as stored:
            positions = range(len(stored))[where]
            if len(positions) != len(rows):
                raise ValueError(
                    f"{self.name}: a slice of {len(positions)} rows cannot become {len(rows)}, which have no "
                    "keys; delete and insert"
                )
            changed = []
            for position, row in zip(positions, rows, strict=True):
                number = stored.order.at(position)
                changed.append(self._replace(stored, number, stored.read(number)[0], row))
        self._pool_all(changed)

    def _write_many(
        self,
        rows: Iterable[tuple[str | None, Any]],
        put: Callable[[StoredRows, str | None, Any], _Written],
    ) -> None:
        waiting = iter(rows)
        for first in waiting:
            written: list[_Written] = []
            with self._sessions.write() as stored:
                written.append(put(stored, *first))
                size = len(written[0][2])
                for key, row in islice(waiting, _CHUNK_ROWS - 1):
                    written.append(put(stored, key, row))
                    size += len(written[-1][2])
                    if size >= _CHUNK_BYTES:
                        break
            self._pool_all(written)

    def _pool_all(self, written: list[_Written]) -> None:
        with self._lock:
            self._changes += 1
            for key, row, content in written:
                self._pool.add(key, row, None if is_atom(row) else checksum(content))
        written.clear()  # they would count as held
        self._make_room()

    def _key_of(self, row: Any) -> str | None:
        if self._key is None:
            return None
        found = row[self._key] if isinstance(self._key, str) else self._key(row)
        key_record(found)
        return str(found)

    # -- the pool

    def _make_room(self) -> None:
        """Rows leave, after those that changed are written. Put off while somebody else writes."""
        with self._lock:
            if not self._pool.is_full:
                return
            leaving = self._pool.leaving()
            changed = self._pool.changed(self.serialization, leaving)
            written: list[ChangedRow] = []
            if changed:
                with suppress(TimeoutError), self._sessions.write(wait=False) as stored:
                    self._write_rows(stored, changed)
                    written, changed = changed, []
                self._mark_stored(written)
            unwritten = {key for key, _, _ in changed}
            for key in leaving:
                if key not in unwritten:
                    self._pool.drop(key)
            self._pool.settle()

    def _write_back(self, stored: StoredRows) -> list[ChangedRow]:
        with self._lock:
            changed = self._pool.changed(self.serialization)
            self._write_rows(stored, changed)
            return changed

    def _write_rows(self, stored: StoredRows, changed: list[ChangedRow]) -> None:
        self._changes += bool(changed)
        for key, _, content in changed:
            number = stored.find(key)
            if number is not None:  # else another process has deleted it
                stored.replace(number, key, content)

    def _mark_stored(self, written: list[ChangedRow]) -> None:
        """After the commit: what failed to be written is still to be."""
        for _, pooled, content in written:
            pooled.stored = checksum(content)

    def _forget_all(self) -> None:
        with self._lock:
            self._changes += 1
            self._pool.clear()

    def _renewed_changes(self) -> int:
        if self._life != self.db.environment.life:
            self._begin_life()
        return self._changes

    def _stored_items(self) -> Iterator[tuple[str, bytes, int]]:
        """Key and content, and which changes the content already has."""
        position = 0
        while True:
            changes = self._renewed_changes()
            with self._sessions.read() as stored:
                read = list(stored.items(position, min(position + _READ_ROWS, len(stored))))
            for place, item in enumerate(read):
                if place and changes != self._changes:  # the first one always, to get on
                    break
                position += 1
                yield *item, changes
            if not read:
                return


_Written = tuple[str, Any, bytes]


def _rebuilt(db: DB, name: str, serialization: Serializer, pool_size: int, key: KeyOf | None) -> RowTable:
    return RowTable(db, name, serialization=serialization, pool_size=pool_size, key=key)
