"""How a table of rows is read and written: one transaction each, or the batch that a thread is in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kara_cache.storage.kv.database import DB
from kara_cache.storage.kv.reader import Lmdb
from kara_cache.storage.kv.stored_rows import StoredRows
from kara_cache.storage.kv.transaction import Transaction

_NODES = 2048  # of the order, that are kept between two reads of the same state; 2 KB each


class TableSessions:
    """Thread-safe, and usable in a forked child, which is in no batch."""

    def __init__(self, db: DB, name: str, serializer: str) -> None:
        self._db = db
        self._name = name
        self._serializer = serializer
        self._nodes: tuple[int, dict[int, Any]] = (-1, {})  # of the order, and of which state
        self._batch: tuple[tuple[int, int], StoredRows, Transaction] | None = None  # and whose it is

    @property
    def own_batch(self) -> StoredRows | None:
        """The batch that this thread is in."""
        batch = self._batch
        return batch[1] if batch is not None and batch[0] == _me() else None

    @contextmanager
    def read(self) -> Iterator[StoredRows]:
        stored = self.own_batch
        if stored is not None:
            yield stored
            return
        environment = self._db.environment
        handle = environment.table(self._name)
        with environment.read() as transaction:
            number, nodes = self._nodes
            if number != transaction.id() or len(nodes) > _NODES:
                nodes = {}
                self._nodes = (transaction.id(), nodes)
            yield StoredRows(_Snapshot(transaction, handle), self._serializer, nodes)

    @contextmanager
    def write(self, then: Callable[[], None], *, wait: bool = True) -> Iterator[StoredRows]:
        """Commits at the end of the block, unless it is in a batch.

        `then` follows the commit, before another writer can begin. In a batch it follows the block, also
        one that ends by an exception: what was written until then stays in the batch.
        """
        if self.own_batch is None:
            with self._transaction(then, wait=wait) as (stored, _):
                yield stored
            return
        assert self._batch is not None
        _, stored, transaction = self._batch
        try:
            yield stored
        finally:
            if transaction.is_open:
                then()

    @contextmanager
    def batch(self, then: Callable[[], None], undone: Callable[[], None]) -> Iterator[StoredRows]:
        """All that this thread reads and writes in the block is one transaction, which commits at its end.

        Then or where nothing was written, before another writer can begin, comes `then` or `undone`.
        """
        if self.own_batch is not None:
            raise RuntimeError(f"{self._db.path}: a batch in a batch")
        with self._transaction(then, undone) as (stored, transaction):
            self._batch = (_me(), stored, transaction)
            try:
                yield stored
            finally:
                self._batch = None

    @contextmanager
    def _transaction(
        self, then: Callable[[], None], undone: Callable[[], None] | None = None, *, wait: bool = True
    ) -> Iterator[tuple[StoredRows, Transaction]]:
        with self._db.transaction(table=self._name, wait=wait) as transaction:
            transaction.follow(then, undone)
            stored = StoredRows(_Writing(transaction), self._serializer)
            yield stored, transaction
            stored.write()


class _Snapshot:
    """The records that a read transaction sees."""

    def __init__(self, transaction: Lmdb, handle: Lmdb) -> None:
        self._transaction = transaction
        self._handle = handle

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._transaction.get(key, db=self._handle)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        raise AssertionError("a read transaction does not write")

    def delete(self, key: bytes) -> None:
        raise AssertionError("a read transaction does not write")


class _Writing:
    """The records that a write transaction sees and makes."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        return self._transaction.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value)

    def delete(self, key: bytes) -> None:
        self._transaction.delete(key)


def _me() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()
