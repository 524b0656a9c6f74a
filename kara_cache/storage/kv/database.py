"""A keyed database in LMDB's files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from kara_cache.process_events import watch
from kara_cache.storage.kv import files
from kara_cache.storage.kv.cursor import Cursor
from kara_cache.storage.kv.environment import Environment
from kara_cache.storage.kv.forks import forks
from kara_cache.storage.kv.keys import Key, key_bytes
from kara_cache.storage.kv.prune import prune
from kara_cache.storage.kv.transaction import Transaction

logger = logging.getLogger(__name__)

Mode = Literal["new", "read", "write"]
LOCK_TIMEOUT_S = 60.0


class Attached(Protocol):
    """Keeps changes of its own above a database."""

    def flush(self) -> None: ...


class DB:
    """Records of a key and a value, in the order of the keys, or several named tables of them.

    `mode`: "new" makes a database where nothing is, "write" continues one or makes it, "read" reads one.
    Any number of processes may read while one writes: a transaction waits `lock_timeout_s` for another
    one to end, then raises TimeoutError; readers never wait. `sync=False` leaves it to the system when
    data reach the disk: a killed process loses nothing, a machine without power may lose the database.

    `map_bytes` is what LMDB maps at first, only addresses: 1 TiB, or four times the free disk, if None.

    Thread-safe. Forked children and processes that got it by pickling open the files themselves, those
    of mode "new" to write. Within a process files can be open once: share the `DB`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Mode = "read",
        *,
        map_bytes: int | None = None,
        sync: bool = True,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        find = {"new": files.new, "read": files.existing, "write": files.existing_or_new}.get(mode)
        if find is None:
            raise ValueError(f"mode {mode!r}: want 'new', 'read' or 'write'")
        self.mode = mode
        self._options: dict[str, Any] = {
            "map_bytes": map_bytes,
            "sync": sync,
            "lock_timeout_s": lock_timeout_s,
        }
        self.environment = Environment(find(path), readonly=mode == "read", **self._options)
        self._attached: list[Attached] = []
        watch(self)
        forks.tell_at_exit()

    @property
    def path(self) -> Path:
        return self.environment.files.path

    @property
    def writable(self) -> bool:
        return self.mode != "read"

    def table(self, name: str) -> str:
        """Makes a named table unless it is there, and returns its name, for `table=`.

        Raises KeyError where the database is open to read and has none, RuntimeError within a transaction.
        """
        key_bytes(name)
        if self.writable:
            self.environment.make_table(name)
        else:
            self.environment.table(name)
        return name

    def tables(self) -> list[str]:
        return self.environment.table_names()

    def transaction(self, *, table: str | None = None, wait: bool = True) -> Transaction:
        """Writes to the named, or the one unnamed, table where no other is named. One at a time.

        Raises TimeoutError where another one goes on, after `lock_timeout_s` or at once without `wait`.
        """
        if not self.writable:
            raise PermissionError(f"{self.path}: open to read; mode='write' writes")
        return Transaction(self.environment, table, wait=wait)

    def cursor(self, *, table: str | None = None) -> Cursor:
        """On the first record, of the state as it is now."""
        return Cursor(self.environment, table)

    def get(self, key: Key, *, table: str | None = None) -> bytes | None:
        found, handle = key_bytes(key), self.environment.table(table)
        with self.environment.read() as transaction:
            value: bytes | None = transaction.get(found, db=handle)
            return value

    def count(self, *, table: str | None = None) -> int:
        """Records of the table."""
        handle = self.environment.table(table)
        with self.environment.read() as transaction:
            return int(transaction.stat(handle)["entries"])

    @property
    def physical_size(self) -> int:
        """Bytes of the data file. Space of deleted records is used again, and given back by `prune`."""
        return self.environment.files.data.stat().st_size

    def prune(self) -> None:
        """Writes the file anew without free space, and takes its place.

        Raises TimeoutError where another program has the database open. A crash leaves the old file.
        """
        self.flush()
        prune(self.environment)

    def attach(self, attached: Attached) -> None:
        """It is flushed before the database closes, and lives as long."""
        self._attached.append(attached)

    def flush(self) -> None:
        """Writes what attached tables have pending."""
        if self.writable and not self.environment.closed:
            for attached in list(self._attached):
                attached.flush()

    def close(self) -> None:
        """Flushes attached tables, ends open cursors. Idempotent. RuntimeError within a transaction."""
        self.flush()
        self.environment.close()

    def after_fork(self) -> None:
        """Nothing: the environment begins anew at its next use, and tables with it."""

    def at_exit(self) -> None:
        """A database that nobody closed keeps what was changed in its tables, too."""
        if self.environment.is_inherited:
            return
        try:
            self.flush()
        except Exception:  # nobody is there any more to catch it
            logger.exception("%s: changes of rows could not be written", self.path)

    def __del__(self) -> None:
        if getattr(self, "_attached", None) and self.writable and not self.environment.closed:
            self.at_exit()

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, (str, bytes)) and self.get(key) is not None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        with self.cursor() as cursor:
            yield from cursor

    def __enter__(self) -> DB:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        mode = "write" if self.mode == "new" else self.mode
        return (_opened, (str(self.path), mode, self._options))

    def __repr__(self) -> str:
        state = "closed" if self.environment.closed else f"{self.physical_size} bytes"
        return f"<DB {self.path} {self.mode}, {state}>"


def _opened(path: str, mode: Mode, options: dict[str, Any]) -> DB:
    return DB(path, mode, **options)
