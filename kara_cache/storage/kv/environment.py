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

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lmdb

from kara_cache.errors import KaraError
from kara_cache.storage.kv.failures import has_no_addresses, may_not_lock, translated
from kara_cache.storage.kv.files import DatabaseFiles
from kara_cache.storage.kv.forks import forks
from kara_cache.storage.kv.reader import Lmdb, LocalReader, MapChanged, Reader
from kara_cache.storage.kv.writer_lock import WriterLock

logger = logging.getLogger(__name__)

DEFAULT_MAP_BYTES = 1 << 40
"""Only addresses, no memory and no disk: what lmdb's own documentation suggests for 64 bits."""
SMALLEST_MAP_BYTES = 1 << 20
MAX_TABLES = 126
MAX_READERS = 1024  # read transactions over all processes; 64 bytes each in the lock file
_FORK_WAIT_S = 10.0
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
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()  # guarded by _registry
        self._registry = threading.Lock()
        self._local = threading.local()
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
                    self._handle = self._open()
        return self._handle

    def _open(self) -> Lmdb:
        size = self._map_bytes
        while True:
            try:
                opened = self._open_with(size)
                opened.reader_check()  # frees the slots of processes that died
                return opened
            except (lmdb.Error, MemoryError) as exc:  # noqa: PERF203 - few times, when opened
                # An address space that is limited (ulimit -v): a smaller map, which grows as far as it can.
                if size <= 64 * SMALLEST_MAP_BYTES or not has_no_addresses(exc):
                    raise self.failure("open", exc) from exc
                size //= 2

    def _open_with(self, size: int) -> Lmdb:
        options: dict[str, Any] = {
            "map_size": size,
            "subdir": not self.files.single,
            "readonly": self.readonly,
            "sync": self._sync,
            "mode": 0o775,
            "create": False,
            "max_readers": MAX_READERS,
            "max_dbs": MAX_TABLES,
            "max_spare_txns": 0,  # a spare one keeps a slot, which a forked child would end
        }
        try:
            return lmdb.open(os.fspath(self.files.path), **options)
        except (lmdb.ReadonlyError, lmdb.LockError, PermissionError, lmdb.Error) as exc:
            if not (self.readonly and may_not_lock(exc, self.files)):
                raise
        # Data that cannot be written by us, for instance a published read-only mount: nobody changes it.
        logger.info("%s: no right to write the lock file, read without a lock", self.files.path)
        return lmdb.open(os.fspath(self.files.path), lock=False, **options)

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
                    opened = self.handle().open_db(key, txn=transaction, create=create)
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
                self._tables[name] = opened
                return opened
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
        with self._registry:
            self._readers.add(reader)

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
        reader = self._local_reader()
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

    def _local_reader(self) -> LocalReader:
        self.handle()  # in a forked child this is what replaces _local
        reader: LocalReader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = LocalReader()
            self.register(reader)
        return reader

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
        with self._all_suspended():
            try:
                self.handle().set_mapsize(size)
            except (lmdb.Error, MemoryError) as exc:
                raise self.failure(f"map of {size} bytes", exc) from exc
            self._map_bytes = max(self._map_bytes, int(self.handle().info()["map_size"]))
            self.generation += 1

    def abort(self, transaction: Lmdb) -> None:
        """Ends a write transaction. lmdb waits until nobody calls it, so readers have to pause."""
        with self._all_paused():
            transaction.abort()

    @contextmanager
    def _all_paused(self) -> Iterator[list[Reader]]:
        with ExitStack() as held:
            held.enter_context(self._registry)  # no new readers meanwhile
            readers = list(self._readers)
            for reader in readers:
                held.enter_context(reader.lock)
            yield readers

    @contextmanager
    def _all_suspended(self) -> Iterator[None]:
        with self._all_paused() as readers:
            for reader in readers:
                reader.suspend()
            yield

    # -- fork and end

    def before_fork(self) -> list[threading.Lock]:
        """Suspends all readers and returns the locks that keep them so until the fork is done."""
        if self._handle is None or self._pid != os.getpid():
            return []
        held: list[threading.Lock] = []
        if not self._registry.acquire(timeout=_FORK_WAIT_S):
            return held
        held.append(self._registry)
        for reader in list(self._readers):
            if reader.lock.acquire(timeout=_FORK_WAIT_S):
                held.append(reader.lock)
                reader.suspend()
        return held

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
            with self._all_suspended():
                self._tables.clear()
                if handle is not None:
                    handle.close()
            self.writer_lock.close()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Closed for the time of the block, readers too, to exchange its files; then opened again."""
        with self._opening, self._all_suspended():
            handle, self._handle = self._handle, None
            self._tables.clear()
            if handle is not None:
                handle.close()
            self.generation += 1
            yield

    def failure(self, what: str, exc: BaseException) -> Exception:
        """What LMDB's error is called above this package."""
        return translated(exc, what, self.files)
