"""JSON lines: one row in each line. Keys have no place in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kara_cache.serialization import JSONSerializer
from kara_cache.storage.interchange.complete_file import complete_file
from kara_cache.storage.interchange.record import Record


def read(source: str) -> Iterator[Record]:
    """Empty lines are passed over. Raises ValueError naming the line."""
    decode = JSONSerializer().deserialize
    with open(source, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = decode(line)
            except ValueError as exc:
                raise ValueError(f"{source}, line {number}: {exc}") from exc
            yield Record(None, row)


def count(source: str) -> int | None:
    """Not known before the end."""
    return None


def write(records: Iterable[Record], target: str) -> int:
    encode = JSONSerializer().serialize
    done = 0
    with complete_file(target) as partial, partial.open("wb") as out:
        for done, record in enumerate(records, start=1):
            try:
                out.write(encode(record.row) + b"\n")
            except TypeError as exc:  # noqa: PERF203 - a write each
                raise TypeError(f"row {done - 1}: {exc}") from exc
    return done
