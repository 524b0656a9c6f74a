"""An LMDB environment with what LMDB leaves to its users: growth of the map, fork, read-only places.

LMDB asks three things of a process, and all of them meet here:

1. No transaction may be alive in it while its map changes size.
2. A forked child must not touch what it inherited, and lmdb refuses to open the same file again
   before the inherited environment is closed; closing it would end the parent's read transactions,
   whose slots both see.
3. A write transaction stays in the thread that began it.

So whatever keeps a read transaction is a `Reader`: it can be suspended at any moment between two of
its calls, and begins anew at its next one. All are suspended before the map changes and before a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import lmdb

from kara_cache.errors import KaraError
from kara_cache.storage.kv.failures import translated
from kara_cache.storage.kv.files import DatabaseFiles
from kara_cache.storage.kv.forks import forks
from kara_cache.storage.kv.opening import MAX_READERS, MAX_TABLES, SMALLEST_MAP_BYTES, opened
from kara_cache.storage.kv.reader import Lmdb, MapChanged, Reader
from kara_cache.storage.kv.readers import Readers
from kara_cache.storage.kv.writer_lock import WriterLock

DEFAULT_MAP_BYTES = 1 << 40
"""Only addresses, no memory and no disk: what lmdb's own documentation suggests for 64 bits."""
_PAGE_BYTES = 64 << 10  # the largest that LMDB uses, on systems with pages of that size
_TABLE_RECORD_BYTES = 48  # mdb.c struct MDB_db, the value under a table's name


class Environment:
    """One database's files, opened once in each process that uses it. Thread-safe.

    Raises, from any call: FormatError (not or no longer a database), OSError (of the disk), KaraError
    (of LMDB otherwise), ValueError after `close`.
    """

    def __init__(
        self,
        files: DatabaseFiles,
        *,
        readonly: bool,
        map_bytes: int | None,
        sync: bool,
        lock_timeout_s: float,
    ) -> None:
        self.files = files
        self.readonly = readonly
        if map_bytes is None:
            map_bytes = max(DEFAULT_MAP_BYTES, 4 * files.free_bytes())
        self._map_bytes = max(SMALLEST_MAP_BYTES, map_bytes)
        self._sync = sync
        self._lock_timeout_s = lock_timeout_s
        self._closed = False
        self._begin_life()
        self.handle()
        forks.watch(self)

    def _begin_life(self) -> None:
        """What a process must not share with the one it was forked from."""
        self._pid = os.getpid()
        self._handle: Lmdb | None = None
        self._tables: dict[str | None, Lmdb] = {}
        self._opening = threading.RLock()  # guards _handle, _tables, _map_bytes, generation
        self._readers = Readers()
        self.writer_lock = WriterLock(self.files.writer_lock, timeout_s=self._lock_timeout_s)
        self.generation = 0  # of the map

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def is_inherited(self) -> bool:
        """Whether it was forked into this process and not used here yet."""
        return self._pid != os.getpid()

    @property
    def life(self) -> int:
        """The process that this state belongs to."""
        self.handle()
        return self._pid

    # -- opening

    def handle(self) -> Lmdb:
        if self._pid != os.getpid():
            self._leave_inherited()
        if self._handle is None:
            with self._opening:
                if self._closed:
                    raise ValueError(f"{self.files.path}: the database is closed")
                if self._handle is None:
                    self._handle = opened(
                        self.files, readonly=self.readonly, sync=self._sync, map_bytes=self._map_bytes
                    )
        return self._handle

    def table(self, name: str | None) -> Lmdb:
        """The handle of a named database, or of the unnamed one. Raises KeyError where there is none.

        A transaction sees only handles that are older than it: ask before you begin. The first time, a
        database that is open to write waits for another writer.
        """
        self.handle()
        found = self._tables.get(name)
        if found is not None:
            return found
        if name is not None and not self._exists(name):
            raise KeyError(f"{self.files.path}: has no table {name!r}")
        return self._open_table(name, create=False)

    def make_table(self, name: str) -> None:
        """Raises ValueError where records lie in the unnamed table, whose keys the names would mix with."""
        if self._exists(name):
            self.table(name)
            return
        if self._entries() and not self.has_tables():
            raise ValueError(
                f"{self.files.path}: keeps records in its one unnamed table, so it cannot have "
                f"a table {name!r} beside them"
            )
        self._open_table(name, create=True)

    def has_tables(self) -> bool:
        """Whether the unnamed table holds the names of others."""
        if any(self._tables):
            return True
        unnamed = self.table(None)
        with self.read() as transaction, transaction.cursor(unnamed) as cursor:
            if not cursor.first() or len(cursor.value()) != _TABLE_RECORD_BYTES:
                return False
            name: bytes = cursor.key()
        return self._exists(name.decode(errors="replace"))

    def table_names(self) -> list[str]:
        if not self.has_tables():
            return []
        unnamed = self.table(None)
        with self.read() as transaction, transaction.cursor(unnamed) as cursor:
            return [key.decode() for key in cursor.iternext(values=False)]

    def _entries(self) -> int:
        unnamed = self.table(None)
        with self.read() as transaction:
            return int(transaction.stat(unnamed)["entries"])

    def _exists(self, name: str) -> bool:
        if name in self._tables:
            return True
        with self._opening, self.read() as transaction:
            try:
                self.handle().open_db(name.encode(), txn=transaction, create=False)
            except (lmdb.NotFoundError, lmdb.IncompatibleError):
                return False
            except lmdb.Error as exc:
                raise self.failure(f"table {name!r}", exc) from exc
            return True

    def _open_table(self, name: str | None, *, create: bool) -> Lmdb:
        # A handle lives on only after a commit, and lmdb commits only what may write, if anything may.
        writes = name is not None and not self.readonly
        if writes:
            self.writer_lock.acquire()
        try:
            with self._opening:
                key = None if name is None else name.encode()
                transaction = self._begin(write=True) if writes else None
                try:
                    table = self.handle().open_db(key, txn=transaction, create=create)
                    if transaction is not None:
                        transaction.commit()
                except lmdb.Error as exc:
                    if transaction is not None:
                        self.abort(transaction)
                    if isinstance(exc, lmdb.DbsFullError):
                        raise ValueError(
                            f"{self.files.path}: {MAX_TABLES} tables are the most there can be"
                        ) from exc
                    raise self.failure(f"table {name!r}", exc) from exc
                self._tables[name] = table
                return table
        finally:
            if writes:
                self.writer_lock.release()

    def begin_write(self) -> Lmdb:
        """The caller holds the writer lock, and this thread until the transaction ends."""
        return self._begin(write=True)

    def _begin(self, *, write: bool) -> Lmdb:
        while True:
            generation = self.generation
            try:
                return self.handle().begin(write=write)
            except lmdb.MapResizedError:
                self.adopt(generation)
            except lmdb.Error as exc:
                raise self.failure("begin", exc) from exc

    # -- readers

    def register(self, reader: Reader) -> None:
        self._readers.register(reader)

    def begin_read(self) -> Lmdb:
        """A read transaction; the caller is a registered `Reader` and holds its lock.

        Raises `MapChanged` where another process has grown the map: the caller lets go of its lock,
        calls `adopt` with the error's generation and tries again.
        """
        handle = self.handle()
        generation = self.generation
        try:
            return handle.begin()
        except lmdb.MapResizedError as exc:
            raise MapChanged(generation) from exc
        except lmdb.ReadersFullError as exc:
            if handle.reader_check():
                return handle.begin()
            raise KaraError(
                f"{self.files.path}: {MAX_READERS} read transactions are open, the most there can be"
            ) from exc
        except lmdb.Error as exc:
            raise self.failure("begin", exc) from exc

    @contextmanager
    def read(self) -> Iterator[Lmdb]:
        """A snapshot for one short piece of work of this thread; nested, the same one."""
        self.handle()  # in a forked child this is what replaces _readers
        reader = self._readers.local()
        if reader.transaction is not None:
            yield reader.transaction
            return
        while True:
            try:
                with reader.lock:
                    reader.transaction = self.begin_read()
                    try:
                        yield reader.transaction
                    finally:
                        reader.suspend()
                return
            except MapChanged as changed:  # noqa: PERF203 - the loop is there for it
                self.adopt(changed.generation)

    # -- the map

    def cannot_fill(self) -> bool:
        """Whether the disk is full before the map is, so that a transaction never meets a full map."""
        info = self.handle().info()
        rest = info["map_size"] - (info["last_pgno"] + 1) * _PAGE_BYTES
        return bool(rest > 2 * self.files.free_bytes())

    def last_transaction(self) -> int:
        """The number of the newest committed one; it tells whether anything changed."""
        return int(self.handle().info()["last_txnid"])

    def adopt(self, generation: int) -> None:
        """Takes over the size that another process gave the map, unless this process has since."""
        with self._opening:
            if self.generation == generation:
                self._resize(0)

    def grow(self, *, at_least: int = 0) -> None:
        """Doubles the map; no write transaction is alive in this process."""
        with self._opening:
            size = self.handle().info()["map_size"]
            self._resize(max(2 * size, size + 2 * at_least))

    @property
    def map_bytes(self) -> int:
        return int(self.handle().info()["map_size"])

    def _resize(self, size: int) -> None:
        with self._readers.suspended():
            try:
                self.handle().set_mapsize(size)
            except (lmdb.Error, MemoryError) as exc:
                raise self.failure(f"map of {size} bytes", exc) from exc
            self._map_bytes = max(self._map_bytes, int(self.handle().info()["map_size"]))
            self.generation += 1

    def abort(self, transaction: Lmdb) -> None:
        """Ends a write transaction. lmdb waits until nobody calls it, so readers have to pause."""
        with self._readers.paused():
            transaction.abort()

    # -- fork and end

    def before_fork(self) -> list[threading.Lock]:
        """Suspends all readers and returns the locks that keep them so until the fork is done."""
        if self._handle is None or self._pid != os.getpid():
            return []
        return self._readers.suspend_for_fork()

    def _leave_inherited(self) -> None:
        handle, writing = self._handle, self.writer_lock.is_held
        if writing and handle is not None:
            raise RuntimeError(
                f"{self.files.path}: the process was forked inside a write transaction; "
                "fork before or after it"
            )
        inherited = self.writer_lock
        self._begin_life()
        inherited.close()
        if handle is not None:
            handle.close()  # readers were suspended before the fork, so the parent loses nothing

    def close(self) -> None:
        """Ends what is still being read. Idempotent."""
        if self._closed:
            return
        if self._pid != os.getpid():
            self._leave_inherited()
        if self.writer_lock.is_held:
            raise RuntimeError(f"{self.files.path}: closed inside a write transaction")
        with self._opening:
            self._closed = True
            handle, self._handle = self._handle, None
            with self._readers.suspended():
                self._tables.clear()
                if handle is not None:
                    handle.close()
            self.writer_lock.close()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Closed for the time of the block, readers too, to exchange its files; then opened again."""
        with self._opening, self._readers.suspended():
            handle, self._handle = self._handle, None
            self._tables.clear()
            if handle is not None:
                handle.close()
            self.generation += 1
            yield

    def failure(self, what: str, exc: BaseException) -> Exception:
        """What LMDB's error is called above this package."""
        return translated(exc, what, self.files)
