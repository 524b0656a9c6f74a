"""What is to be cut off the end of the three streams before rows are appended. Pure.

A writer adds data, makes them durable, then index entries, makes them durable, then checksums. So after a
crash at any moment the streams hold rows 0 .. n, and at their ends possibly
- data without index entries, of a writer that ended before `flush`;
- half an index entry or checksum;
- index entries of data that never came to the disk, of the published package, which writes the index
  first, and zeros, which file systems leave where a file grew just before the machine went down.
A checksum is the last thing that is written for a row: whatever it covers has been flushed, and if it is not
there, it is damaged. Then nothing is cut.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import islice

from kara_cache.errors import FormatError
from kara_cache.storage.rows.row_sums import HEADER, flushed_rows
from kara_cache.storage.rows.words import WORD, Words

UNWRITTEN_BYTES = 2 << 20
"""Index entries lead at most so far beyond the data: the published package holds back 1 MiB and 8 KiB."""
_CHUNK = 1 << 16  # words looked at in one go


@dataclass(frozen=True, slots=True)
class Tails:
    """Where the rows that count end in each stream."""

    rows: int
    data: int
    index: int
    sums: int

    def lost(self, index: int, data: int) -> str:
        """In words, what streams of these sizes lose; "" where nothing."""
        parts = []
        if data > self.data:
            parts.append(f"{data - self.data} bytes of data without index entries")
        if index > self.index:
            parts.append(f"{index - self.index} bytes of index without data")
        return " and ".join(parts)


def whole_rows(ends: Words, sums: Words, data_size: int, where: object) -> Tails:
    """
    Args:
        ends, sums: the complete words of index and checksums.
        data_size: bytes of the data stream.

    Raises:
        FormatError: what would be cut was flushed once: it is damage, not a torn tail.
    """
    flushed = flushed_rows(sums)
    if flushed > len(ends):
        raise FormatError(f"{where}: {flushed} rows were flushed, the index has {len(ends)}")
    rows = _ascending(ends, flushed, data_size)
    if rows < flushed:
        raise FormatError(
            f"{where}: row {rows} was flushed, but its index entry {ends[rows]} does not fit to "
            f"{data_size} bytes of data"
        )
    rest = ends[rows:]
    if any(0 < end <= data_size for end in rest):
        raise FormatError(
            f"{where}: the index is damaged at row {rows}: end {ends[rows]} after {ends[rows - 1]}, and "
            "entries after it lead into the data"
        )
    if rest and max(rest) > data_size + UNWRITTEN_BYTES:
        raise FormatError(
            f"{where}: the index goes to byte {max(rest)}, the data only to {data_size}: "
            "that is no torn tail, a file in data/ is missing or was cut"
        )
    size = ends[rows - 1] if rows else 0
    return Tails(rows, size, rows * WORD, HEADER.size + min(rows, len(sums)) * WORD if len(sums) else 0)


def _ascending(ends: Words, flushed: int, data_size: int) -> int:
    """How many entries ascend and are within the data. Those that a checksum covers were checked before."""
    done = max(0, flushed - 1)
    last = ends[done - 1] if done else 0
    while done < len(ends):
        chunk = [last, *ends[done : done + _CHUNK].tolist()]
        if chunk[-1] > data_size or not all(map(operator.le, chunk, islice(chunk, 1, None))):
            for i in range(1, len(chunk)):
                if not chunk[i - 1] <= chunk[i] <= data_size:
                    return done + i - 1
        done, last = done + len(chunk) - 1, chunk[-1]
    return done
