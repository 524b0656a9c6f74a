"""A place in the order of the keys of one table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType

import lmdb

from kara_cache.storage.kv.environment import Environment
from kara_cache.storage.kv.keys import Key, key_bytes
from kara_cache.storage.kv.reader import Lmdb, MapChanged

_Move = Callable[[Lmdb, bool], bool]
"""Moves LMDB's cursor, which is unplaced if the flag is set; whether it stands on a record then."""


class Cursor:
    """Stands on a record, at first on the first one, or is not `valid`. Keys are in the order of their bytes.

    It sees the state of the moment when it was made, whatever is written meanwhile, until `refresh`.
    Twice it goes on at its key in the newest state instead: after the map grew, which the default size
    of a map puts off for ever, and after this process forked. While it is open the pages of its state
    are not used again and the file grows with each write: close it. Thread-safe.
    """

    def __init__(self, environment: Environment, table: str | None) -> None:
        self.lock = threading.Lock()  # guards all below
        self._environment = environment
        self._table = table
        self._transaction: Lmdb | None = None
        self._lmdb: Lmdb | None = None
        self._at: tuple[bytes, bytes] | None = None
        self._closed = False
        self._life = -1  # the process that knows of us
        self.seek_to_first()

    def seek_to_first(self) -> bool:
        """Whether there is a record at all."""
        return self._move(lambda cursor, _: cursor.first())

    def seek_to_last(self) -> bool:
        return self._move(lambda cursor, _: cursor.last())

    def seek(self, key: Key) -> bool:
        """To the first record whose key is not before `key`; whether it is exactly that one."""
        wanted = key_bytes(key)
        return self._move(lambda cursor, _: cursor.set_range(wanted)) and self.key == wanted

    def next(self) -> bool:
        """To the next record; False, and not `valid`, after the last."""
        key = self.key

        def move(cursor: Lmdb, unplaced: bool) -> bool:
            if not unplaced:
                return bool(cursor.next())
            return bool(cursor.set_range(key) and (cursor.key() != key or cursor.next()))

        return self._move(move)

    def previous(self) -> bool:
        """To the record before; False, and not `valid`, before the first."""
        key = self.key

        def move(cursor: Lmdb, unplaced: bool) -> bool:
            return bool(cursor.prev() if not unplaced or cursor.set_range(key) else cursor.last())

        return self._move(move)

    def refresh(self) -> bool:
        """To the newest state, at the same key or the first one after it; whether there is one."""
        at = self._at
        with self.lock:
            self.suspend()
        return at is not None and self._move(lambda cursor, _: cursor.set_range(at[0]))

    @property
    def valid(self) -> bool:
        return self._at is not None

    @property
    def key(self) -> bytes:
        """ValueError where the cursor is not valid."""
        return self._record()[0]

    @property
    def value(self) -> bytes:
        return self._record()[1]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """The records from here to the last; the cursor is not valid afterwards."""
        while (at := self._at) is not None:
            yield at
            self.next()

    def suspend(self) -> None:
        self._lmdb = None
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.abort()

    def close(self) -> None:
        """Idempotent."""
        with self.lock:
            self._closed, self._at = True, None
            self.suspend()

    def __enter__(self) -> Cursor:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _record(self) -> tuple[bytes, bytes]:
        at = self._at
        if at is None:
            raise ValueError("the cursor is closed" if self._closed else "the cursor is on no record")
        return at

    def _move(self, move: _Move) -> bool:
        while True:
            handle = self._environment.table(self._table)
            if self._life != self._environment.life:
                self._environment.register(self)
                self._life = self._environment.life
            try:
                with self.lock:
                    return self._move_locked(handle, move)
            except MapChanged as changed:
                self._environment.adopt(changed.generation)
            except lmdb.Error as exc:
                raise self._environment.failure("read", exc) from exc

    def _move_locked(self, handle: Lmdb, move: _Move) -> bool:
        if self._closed:
            raise ValueError("the cursor is closed")
        unplaced = self._lmdb is None
        if self._lmdb is None:
            self._transaction = self._environment.begin_read()
            self._lmdb = self._transaction.cursor(handle)
        self._at = self._lmdb.item() if move(self._lmdb, unplaced) else None
        return self._at is not None
