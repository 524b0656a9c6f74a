"""A write transaction: everything in it happens, or nothing does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import lmdb

from kara_cache.errors import KaraError
from kara_cache.storage.kv.environment import Environment
from kara_cache.storage.kv.journal import Journal, Op
from kara_cache.storage.kv.keys import Key, Value, key_bytes, value_bytes
from kara_cache.storage.kv.reader import Lmdb

_Result = TypeVar("_Result")


class Transaction:
    """Puts and deletes that become visible, and durable, together at `commit`.

    Leaving the `with` block commits, leaving it by an exception aborts; both methods are idempotent,
    and using the transaction after either is a ValueError. It belongs to the thread and the process
    that began it. Readers, here and in other processes, see the state before it until it commits.

    A map that is full grows and what was done is done again in it; nothing is lost. Only where some
    other program wrote in that moment, and this transaction has read, `TransactionConflict` says that
    nothing was written.
    """

    def __init__(self, environment: Environment, table: str | None, *, wait: bool = True) -> None:
        self._environment = environment
        self._default = table
        self._open = False
        self._has_read = False
        self._followed_by: dict[bool, Callable[[], None] | None] = {}  # by whether it was committed
        environment.table(table)  # handles have to be older than the transaction
        self._may_use_unnamed = table is not None or not environment.has_tables()
        environment.writer_lock.acquire(wait=wait)
        try:
            self._begin()
        except BaseException:
            environment.writer_lock.release()
            raise
        self._open = True
        self._owner = (os.getpid(), threading.get_ident())
        # What was done so far, where the map may be full before the disk is.
        self._journal = None if environment.cannot_fill() else Journal()

    def _begin(self) -> None:
        self._lmdb: Lmdb = self._environment.begin_write()
        self._number = self._lmdb.id()

    def put(self, key: Key, value: Value, *, table: str | None = None, overwrite: bool = True) -> bool:
        """False if the key was there and `overwrite` is not set; then its value stays."""
        name, found, data = self._table_name(table), key_bytes(key), value_bytes(value)
        handle = self._handle(name)
        done: bool = self._do(
            lambda: self._lmdb.put(found, data, db=handle, overwrite=overwrite, dupdata=overwrite)
        )
        if done:
            self._note("put", name, found, data)
        return done

    def delete(self, key: Key, *, table: str | None = None) -> bool:
        """Whether there was such a key."""
        name, found = self._table_name(table), key_bytes(key)
        handle = self._handle(name)
        done: bool = self._do(lambda: self._lmdb.delete(found, db=handle))
        if done:
            self._note("delete", name, found)
        return done

    def get(self, key: Key, *, table: str | None = None) -> bytes | None:
        """What the transaction itself would leave under the key."""
        handle = self._handle(self._table_name(table))
        self._has_read = True
        value: bytes | None = self._do(lambda: self._lmdb.get(key_bytes(key), db=handle))
        return value

    def clear(self, *, table: str | None = None) -> None:
        """Deletes all records of the table, not the table."""
        name = self._table_name(table)
        handle = self._handle(name)
        self._do(lambda: self._lmdb.drop(handle, delete=False))
        self._note("drop", name)

    def commit(self) -> None:
        if not self._open:
            return
        self._check()
        self._do(lambda: self._lmdb.commit())
        self._end(committed=True)

    def abort(self) -> None:
        if self._open and self._owner[0] == os.getpid():
            self._environment.abort(self._lmdb)
            self._end()

    def follow(self, committed: Callable[[], None], aborted: Callable[[], None] | None = None) -> None:
        """One of them is called when the transaction has ended, before another writer can begin."""
        self._followed_by = {True: committed, False: aborted}

    @property
    def is_open(self) -> bool:
        return self._open

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.commit()
        else:
            self.abort()

    def __del__(self) -> None:
        # Dropped without either: as if by an exception, and the next writer need not wait.
        if getattr(self, "_open", False) and self._owner == (os.getpid(), threading.get_ident()):
            self._lmdb.abort()  # a reader of this thread may be in the middle of a call: nobody is paused
            self._end()

    def _table_name(self, table: str | None) -> str | None:
        return self._default if table is None else table

    def _handle(self, name: str | None) -> Lmdb:
        self._check()
        if name is None and not self._may_use_unnamed:
            raise ValueError(f"{self._environment.files.path}: has named tables; say which with table=")
        return self._environment.table(name)

    def _check(self) -> None:
        if not self._open:
            raise ValueError("the transaction has ended")
        if self._owner != (os.getpid(), threading.get_ident()):
            raise ValueError("a write transaction belongs to the thread and the process that began it")

    def _note(self, op: Op, table: str | None, key: bytes = b"", value: Value = b"") -> None:
        if self._journal is not None:
            self._journal.add(op, table, key, value)

    def _do(self, act: Callable[[], _Result]) -> _Result:
        while True:
            try:
                return act()
            except lmdb.MapFullError as exc:  # noqa: PERF203 - the loop is there for it
                if self._journal is None:  # somebody has given the disk more room than there was
                    self.abort()
                    self._environment.grow()
                    raise TransactionConflict(
                        f"{self._environment.files.path}: the map was full and has grown; nothing of this "
                        "transaction was written, do it again"
                    ) from exc
                self._grow()
            except lmdb.Error as exc:
                self.abort()
                raise self._environment.failure("write", exc) from exc

    def _grow(self) -> None:
        """Does everything again in a larger map. The writer lock is ours all the time."""
        self._environment.abort(self._lmdb)
        try:
            self._environment.grow()
            while True:
                number = self._number
                self._begin()
                if self._number != number and self._has_read:
                    self._environment.abort(self._lmdb)
                    raise TransactionConflict(
                        f"{self._environment.files.path}: another program wrote while the map grew; "
                        "nothing of this transaction was written, do it again"
                    )
                try:
                    self._replay()
                    return
                except lmdb.MapFullError:
                    self._environment.abort(self._lmdb)
                    self._environment.grow()
        except BaseException:
            self._end()
            raise

    def _replay(self) -> None:
        assert self._journal is not None
        for step in self._journal:
            handle = self._environment.table(step.table)
            if step.op == "put":
                self._lmdb.put(step.key, step.value, db=handle)
            elif step.op == "delete":
                self._lmdb.delete(step.key, db=handle)
            else:
                self._lmdb.drop(handle, delete=False)

    def _end(self, *, committed: bool = False) -> None:
        self._open = False
        if self._journal is not None:
            self._journal.close()
        try:
            act = self._followed_by.get(committed)
            if act is not None:
                act()
        finally:
            self._environment.writer_lock.release()


class TransactionConflict(KaraError):
    """Nothing of the transaction was written; doing it again will do."""
