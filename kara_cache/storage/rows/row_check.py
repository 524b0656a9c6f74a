"""Looks at every row of a data set: which ones are not what was written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kara_cache.errors import FormatError
from kara_cache.storage.rows.row_reader import RowReader

_BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class RowCheck:
    """What was found."""

    rows: int
    with_checksum: int  # the others were written by another program: only their place was checked
    damaged: tuple[tuple[int, str], ...]  # row number, and what is wrong with it

    @property
    def ok(self) -> bool:
        return not self.damaged


def check_rows(
    reader: RowReader, start: int, stop: int, progress: Callable[[int], None] | None = None
) -> RowCheck:
    """Reads rows [start, stop) of a reader with checksums; `progress` gets numbers of rows."""
    damaged: list[tuple[int, str]] = []
    known = 0
    for first, last in reader.batches(start, stop, _BATCH_BYTES):
        known += reader.known(first, last)
        try:
            reader.rows(first, last)
        except FormatError:
            damaged += reader.damage(first, last)
        if progress is not None:
            progress(last - first)
    return RowCheck(max(0, stop - start), known, tuple(damaged))
