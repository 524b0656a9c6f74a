"""Rows from other formats, and to them. One file for each format; all of them stream.

kind          source or target                 a row
jsonl         a file of JSON lines             what the line says
parquet       a file, or a directory of them   {column: value}
webdataset    a tar, or a directory of them    {"__key__": ..., "jpg": bytes, "cls": int, "json": ...}
images        a directory of images            {"path": ..., "label": first directory, "image": bytes}
lmdb          an LMDB environment              bytes, or what a serializer makes of them
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from kara_cache.errors import ConfigError
from kara_cache.serialization import Serializer
from kara_cache.storage.interchange.record import (
    KeyedRows,
    KeyedSink,
    Progress,
    Record,
    RowSink,
    RowSource,
)

_MODULES = {
    "jsonl": "json_lines",
    "parquet": "parquet",
    "webdataset": "webdataset",
    "images": "image_folder",
    "lmdb": "lmdb_environment",
}
KINDS = tuple(_MODULES)
Path = str | os.PathLike[str]


def import_rows(
    source: Path,
    kind: str,
    writer: RowSink | KeyedSink,
    *,
    progress: Progress | None = None,
    serialization: Serializer | None = None,
) -> int:
    """Appends the rows of `source` to `writer`, and returns how many there were.

    Args:
        writer: A row data set that is open to write, or a `RowTable`, which keeps the keys that the
            source has and replaces rows of the same keys.
        progress: Called after each row.
        serialization: For lmdb, how values become rows; the writer's own if None.

    Raises:
        ConfigError: an unknown kind; a library is missing.
        FileNotFoundError: no source.
        ValueError: the source is damaged or not of this kind (the message says where).
        TypeError: the writer's serializer cannot keep such rows, as JSON cannot keep bytes.
    """
    module = _module(kind)
    if kind == "lmdb":
        serialization = serialization or getattr(writer, "serialization", None)
        records = module.read(os.fspath(source), serialization)
    else:
        records = module.read(os.fspath(source))
    return _put(records, module.count(os.fspath(source)), writer, progress)


def export_rows(
    dataset: RowSource,
    kind: str,
    target: Path,
    *,
    progress: Progress | None = None,
    serialization: Serializer | None = None,
) -> int:
    """Writes all rows to `target`, which must not be there yet, and returns how many there were.

    A target that is a file appears when it is complete. Rows keep their keys where they have some and
    the format has a place for them; else they are numbered.

    Args:
        dataset: A row data set or a `RowTable`.
        serialization: For lmdb, how rows become values; the data set's own if None.

    Raises:
        ConfigError: an unknown kind; a library is missing.
        FileExistsError: something is at `target`.
        ValueError, TypeError: a row does not fit the format (the message says which).
    """
    module = _module(kind)
    place = os.fspath(target)
    if os.path.lexists(place) and not (os.path.isdir(place) and not os.listdir(place)):
        raise FileExistsError(f"{place}: is there already; an export replaces nothing")

    def records() -> Iterator[Record]:
        return _records(dataset)

    def counted() -> Iterator[Record]:
        return _counted(records(), len(dataset), progress)

    if kind == "lmdb":
        serialization = serialization or getattr(dataset, "serialization", None)
        return int(module.write(counted(), place, serialization))
    if kind == "parquet":  # looks at all rows before it writes one
        return int(module.write(records, counted, place))
    return int(module.write(counted(), place))


def _module(kind: str) -> Any:
    if kind not in _MODULES:
        raise ConfigError(f"kind {kind!r}: known are {', '.join(_MODULES)}")
    return import_module(f"{__name__}.{_MODULES[kind]}")


def _put(
    records: Iterable[Record], total: int | None, writer: RowSink | KeyedSink, progress: Progress | None
) -> int:
    done = 0

    def passing() -> Iterator[Record]:
        nonlocal done
        for record in records:
            yield record
            done += 1
            if progress is not None:
                progress(done, total)

    if isinstance(writer, KeyedSink):
        writer.put_records(passing())
    else:
        for record in passing():
            writer.write(record.row)
    return done


def _counted(records: Iterator[Record], total: int, progress: Progress | None) -> Iterator[Record]:
    for done, record in enumerate(records, start=1):
        yield record
        if progress is not None:
            progress(done, total)


def _records(dataset: RowSource) -> Iterator[Record]:
    if isinstance(dataset, KeyedRows):
        return (Record(key, row) for key, row in dataset.items())
    keys: Any = getattr(dataset, "keys", None)  # of a row data set: the published keys, if there are any
    names: Callable[[], Iterator[str]] | None = getattr(keys, "keys", None)
    if names is not None and len(keys) == len(dataset):
        return (Record(key, row) for key, row in zip(names(), dataset, strict=True))
    return (Record(None, row) for row in dataset)


__all__ = ["KINDS", "Progress", "export_rows", "import_rows"]
