"""Making a data set sample by sample: keys and values in transactions, and tables of rows, on LMDB.

    with kv.open("faces", "new") as db:
        with db.transaction() as transaction:
            transaction.put("alice", image)

Needs the extra `kv` (`pip install 'kara-cache[kv]'`). See docs/kv.md.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from kara_cache.errors import ConfigError

if TYPE_CHECKING:
    from kara_cache.storage.kv.cursor import Cursor
    from kara_cache.storage.kv.database import DB, Mode
    from kara_cache.storage.kv.publish import publish
    from kara_cache.storage.kv.row_table import RowTable
    from kara_cache.storage.kv.transaction import Transaction, TransactionConflict

__all__ = [
    "DB",
    "Cursor",
    "RowTable",
    "Transaction",
    "TransactionConflict",
    "open",
    "open_table",
    "publish",
]

_HOMES = {
    "Cursor": "cursor",
    "DB": "database",
    "RowTable": "row_table",
    "Transaction": "transaction",
    "TransactionConflict": "transaction",
    "publish": "publish",
}


def open(path: str | os.PathLike[str], mode: Mode = "read", **options: Any) -> DB:
    """The database at `path`: `mode` "new" makes one, "write" continues or makes one, "read" reads one.

    Args:
        options: `map_bytes`, `sync`, `lock_timeout_s` of `DB`.

    Raises:
        FileNotFoundError: "read", and there is none.
        FileExistsError: "new", and there is one; "new" or "write", and there is something else.
        FormatError: a file there is not LMDB's.
    """
    database: type[DB] = _load("DB")
    return database(path, mode, **options)


def open_table(
    path: str | os.PathLike[str], mode: Mode = "read", *, name: str = "rows", **options: Any
) -> RowTable:
    """The table of rows `name` in the database at `path`; closing it closes the database.

    Args:
        options: `serialization`, `pool_size`, `key` of `RowTable`, and those of `open`.
    """
    table: type[RowTable] = _load("RowTable")
    own = {
        option: options.pop(option) for option in ("serialization", "pool_size", "key") if option in options
    }
    db = open(path, mode, **options)
    try:
        return table(db, name, **own)
    except BaseException:
        db.close()
        raise


def _load(name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"kara_cache.storage.kv.{_HOMES[name]}"), name)
    except ModuleNotFoundError as exc:
        if exc.name != "lmdb":
            raise
        raise ConfigError("kara_cache.kv needs lmdb: pip install 'kara-cache[kv]'") from exc


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return _load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
