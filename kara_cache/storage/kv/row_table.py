"""A data set while it is being made: a list and a dictionary of rows at once, on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Any

from kara_cache.serialization import JSONSerializer, Serializer
from kara_cache.storage.kv.database import DB
from kara_cache.storage.kv.row_form import KeyOf, RowForm, WrittenRow
from kara_cache.storage.kv.row_places import Where, is_position, number_at, number_of_key, numbers_of
from kara_cache.storage.kv.stored_rows import StoredRows
from kara_cache.storage.kv.table_pool import ABSENT, TablePool
from kara_cache.storage.kv.table_sessions import TableSessions

DEFAULT_NAME = "rows"
POOL_ROWS = 1000  # what the table that this one succeeds kept
_CHUNK_ROWS = 1000  # of one transaction of `extend` and `update`
_CHUNK_BYTES = 32 << 20
_READ_ROWS = 64  # that iteration reads at once


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
    the same row in their pools, the one that writes back last wins. Thread-safe; of a row that another
    thread's batch has written or deleted a thread gets a copy of what is committed, and its changes to
    that are not kept. Forked children, and processes that got the table by pickling, begin with what is
    committed.

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
        self._form = RowForm(self.name, self.serialization, key)
        self._sessions = TableSessions(db, self.name, type(self.serialization).__name__)
        self._lives = self._new_life()
        with self._sessions.read():
            pass  # says now what is wrong with the table
        if db.writable:
            db.attach(self)

    def _new_life(self) -> tuple[int, TablePool]:
        pool = TablePool(self._sessions, self.serialization, self._pool_size, writable=self.db.writable)
        return self.db.environment.life, pool

    @property
    def _pool(self) -> TablePool:
        """Of this process: a forked child has another one than its parent."""
        if self._lives[0] != self.db.environment.life:
            self._lives = self._new_life()
        return self._lives[1]

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
        return [self.serialization.deserialize(content) for _, content in read]

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
                yield key, self.serialization.deserialize(content)
                continue
            row = self._pool.take_in(key, content, changes)
            if row is ABSENT:
                row = self.get(key, ABSENT)
            if row is not ABSENT:
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
        self._write_many(named, self._form.append)

    def update(self, rows: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Replaces the rows of these keys, and appends those that are new."""
        self._write_many(rows.items() if isinstance(rows, Mapping) else rows, self._form.put)

    def put_records(self, records: Iterable[tuple[str | None, Any]]) -> None:
        """As `update`; those without a key are appended."""
        self._write_many(records, self._form.put)

    def __setitem__(self, where: int | str | slice, row: Any) -> None:
        """Replaces a row; under a key that is new, appends it. Rows of a slice are replaced one by one."""
        if isinstance(where, slice):
            self._replace_slice(where, list(row))
            return
        with self._pool.writing() as (stored, written):
            if isinstance(where, str):
                written.append(self._form.put(stored, where, row))
            else:
                number = number_at(stored, where)
                written.append(self._form.replace(stored, number, stored.read(number)[0], row))

    def __delitem__(self, where: Where) -> None:
        """Deletes the rows that int, str, slice or a list of them names, all or none."""
        with self._pool.deleting() as (stored, keys):
            for number in numbers_of(stored, where):
                keys.append(stored.remove(number))

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
            transaction.follow(self._pool.clear)
            transaction.clear()

    @contextmanager
    def batch(self) -> Iterator[RowTable]:
        """What this thread does in the block is one transaction: all of it, or by an exception nothing."""
        if self._sessions.own_batch is not None:
            raise RuntimeError(f"{self!r}: a batch in a batch")
        with self._pool.batch():
            yield self

    def flush(self) -> None:
        """Writes back the rows that were changed in place. Raises what the serializer does for such a row."""
        if self.db.writable and self._lives[0] == self.db.environment.life:
            self._pool.flush()

    def reload(self) -> None:
        """Writes back what was changed in place, and forgets all rows: the next access reads them anew."""
        self.flush()
        self._pool.clear()

    def prune(self) -> None:
        """Rebuilds the order and rewrites the file of the database without free space. See `DB.prune`."""
        with self._pool.writing() as (stored, _):
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
        return _rebuilt, (self.db, self.name, self.serialization, self._pool_size, self._form.key)

    def __repr__(self) -> str:
        return f"<RowTable {self.name!r} in {self.db!r}, {len(self._lives[1])} rows in the pool>"

    # -- one row in and out

    def _by_key(self, key: str) -> Any:
        while True:
            pool = self._pool
            changes = pool.changes
            row = pool.get(key)
            if row is not ABSENT:
                return row
            with self._sessions.read() as stored:
                _, content = stored.read(number_of_key(stored, key))
            row = pool.take_in(key, content, changes)
            if row is not ABSENT:
                return row

    def _at(self, position: Any) -> Any:
        while True:
            pool = self._pool
            changes = pool.changes
            with self._sessions.read() as stored:
                key, content = stored.read(number_at(stored, position))
            row = pool.take_in(key, content, changes)
            if row is not ABSENT:
                return row

    def _insert(self, position: int | None, row: Any, key: str | None) -> str:
        with self._pool.writing() as (stored, written):
            written.append(self._form.insert(stored, position, key, row))
            return written[0][0]

    def _replace_slice(self, where: slice, rows: list[Any]) -> None:
        with self._pool.writing() as (stored, written):
            positions = range(len(stored))[where]
            if len(positions) != len(rows):
                raise ValueError(
                    f"{self.name}: a slice of {len(positions)} rows cannot become {len(rows)}, which have no "
                    "keys; delete and insert"
                )
            for position, row in zip(positions, rows, strict=True):
                number = stored.order.at(position)
                written.append(self._form.replace(stored, number, stored.read(number)[0], row))

    def _write_many(
        self,
        rows: Iterable[tuple[str | None, Any]],
        put: Callable[[StoredRows, str | None, Any], WrittenRow],
    ) -> None:
        waiting = iter(rows)
        for first in waiting:
            with self._pool.writing() as (stored, written):
                written.append(put(stored, *first))
                size = len(written[0][2])
                for key, row in islice(waiting, _CHUNK_ROWS - 1):
                    written.append(put(stored, key, row))
                    size += len(written[-1][2])
                    if size >= _CHUNK_BYTES:
                        break

    def _stored_items(self) -> Iterator[tuple[str, bytes, int]]:
        """Key and content, and which changes the content already has."""
        position = 0
        while True:
            pool = self._pool
            changes = pool.changes
            with self._sessions.read() as stored:
                read = list(stored.items(position, min(position + _READ_ROWS, len(stored))))
            for place, item in enumerate(read):
                if place and changes != pool.changes:  # the first one always, to get on
                    break
                position += 1
                yield *item, changes
            if not read:
                return


def _rebuilt(db: DB, name: str, serialization: Serializer, pool_size: int, key: KeyOf | None) -> RowTable:
    return RowTable(db, name, serialization=serialization, pool_size=pool_size, key=key)
