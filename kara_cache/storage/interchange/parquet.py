"""Parquet: one row group for each thousand rows, so that memory does not grow with the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from kara_cache.errors import ConfigError
from kara_cache.storage.interchange.complete_file import complete_file
from kara_cache.storage.interchange.record import Record

_ROWS = 1000


def read(source: str) -> Iterator[Record]:
    """Raises ValueError naming the file."""
    parquet, pyarrow = _libraries()
    for file in _files(source):
        try:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(_ROWS):
                    for row in batch.to_pylist():
                        yield Record(None, row)
        except pyarrow.ArrowInvalid as exc:  # noqa: PERF203 - a file each
            raise ValueError(f"{file}: {exc}") from exc


def count(source: str) -> int | None:
    parquet, pyarrow = _libraries()
    try:
        return sum(int(parquet.read_metadata(file).num_rows) for file in _files(source))
    except pyarrow.ArrowInvalid:
        return None  # `read` says where


def write(look: Callable[[], Iterable[Record]], records: Callable[[], Iterable[Record]], target: str) -> int:
    """Goes over the rows twice: the first time for columns and types that fit all of them."""
    parquet, pyarrow = _libraries()
    schema = _schema(look(), pyarrow)
    done = 0
    with complete_file(target) as partial:
        with parquet.ParquetWriter(partial, schema) as writer:
            for rows in _batches(records()):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
                done += len(rows)
    return done


def _schema(records: Iterable[Record], pyarrow: Any) -> Any:
    schema = pyarrow.schema([])
    at = 0
    for rows in _batches(records):
        for number, row in enumerate(rows, start=at):
            if not isinstance(row, dict):
                raise TypeError(f"row {number}: a row of parquet is a dict, got {type(row).__name__}")
        try:
            found = pyarrow.Table.from_pylist(rows, schema=_columns(rows, pyarrow)).schema
            schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
        except pyarrow.ArrowException as exc:
            raise ValueError(
                f"rows {at} to {at + len(rows) - 1}: columns do not fit together: {exc}"
            ) from exc
        at += len(rows)
    return schema


def _columns(rows: list[dict[str, Any]], pyarrow: Any) -> Any:
    """Types of all columns: by itself pyarrow looks at those of the first row only."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pyarrow.schema([(name, pyarrow.array([row.get(name) for row in rows]).type) for name in names])


def _batches(records: Iterable[Record]) -> Iterator[list[Any]]:
    waiting = iter(records)
    while rows := [record.row for record in islice(waiting, _ROWS)]:
        yield rows


def _files(source: str) -> list[Path]:
    place = Path(source)
    if not place.is_dir():
        return [place]
    found = sorted(place.rglob("*.parquet"))
    if not found:
        raise FileNotFoundError(f"{place}: a directory without *.parquet")
    return found


def _libraries() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as exc:
        raise ConfigError("Parquet needs pyarrow: pip install pyarrow") from exc
    return parquet, pyarrow
