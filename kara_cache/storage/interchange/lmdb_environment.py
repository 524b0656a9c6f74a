"""LMDB environments of any program: a record is a row, its key the row's key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from kara_cache.errors import ConfigError
from kara_cache.serialization import Serializer
from kara_cache.storage.interchange.record import Record

if TYPE_CHECKING:
    from kara_cache.storage.kv.database import DB, Mode

_ROWS = 1000  # of one transaction


def read(source: str, serialization: Serializer | None) -> Iterator[Record]:
    """In the order of the keys. Keys that are not UTF-8 are given in hexadecimal.

    Raises ValueError for named tables, of which a caller reads one with `kara_cache.kv`.
    """
    with _open(source, "read") as db:
        if tables := db.tables():
            raise ValueError(
                f"{source}: has the tables {', '.join(tables)}; only one without names is imported"
            )
        with db.cursor() as cursor:
            for key, value in cursor:
                yield Record(_text(key), value if serialization is None else serialization.deserialize(value))


def count(source: str) -> int | None:
    with _open(source, "read") as db:
        return len(db)


def write(records: Iterable[Record], target: str, serialization: Serializer | None) -> int:
    """Rows without keys get numbers of ten digits, so that they stay in order."""
    waiting = iter(records)
    done = 0
    with _open(target, "new") as db:
        while batch := list(islice(waiting, _ROWS)):
            with db.transaction() as transaction:
                for key, row in batch:
                    value: Any = row if serialization is None else serialization.serialize(row)
                    transaction.put(f"{done:010}" if key is None else key, value)
                    done += 1
    return done


def _open(path: str, mode: Mode) -> DB:
    try:
        from kara_cache.storage.kv.database import DB
    except ModuleNotFoundError as exc:
        raise ConfigError("LMDB environments need lmdb: pip install 'kara-cache[kv]'") from exc
    return DB(path, mode)


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.hex()
