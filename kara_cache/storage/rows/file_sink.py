"""Rows at the end of a version on this machine's disk."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack

from kara_cache.storage.rows.mapped_bytes import MappedBytes
from kara_cache.storage.rows.row_sums import HEADER, header, padding, read_sums
from kara_cache.storage.rows.row_version import RowVersion
from kara_cache.storage.rows.segment_files import SegmentFiles, make_directories
from kara_cache.storage.rows.torn_tail import Tails, whole_rows
from kara_cache.storage.rows.words import WORD, words
from kara_cache.storage.rows.writer_lock import WriterLock


class FileSink:
    """A `RowSink` that fsyncs. Laid out so that the published package reads it and appends to it."""

    waits = False

    def __init__(self, version: RowVersion, max_file_bytes: int) -> None:
        """Raises BlockingIOError, FormatError; cuts a torn tail with a RuntimeWarning."""
        directory = f"/{version.directory}"
        make_directories(directory)
        with ExitStack() as undo:
            self._lock = WriterLock(directory, version)
            undo.callback(self._lock.release)
            self._data = SegmentFiles(f"/{version.data}", max_file_bytes)
            self._index = SegmentFiles(f"/{version.index}", max_file_bytes)
            self._sums = SegmentFiles(f"/{version.sums}", max_file_bytes)
            tails = _tails(version)
            self._cut(tails, version)
            self.count = tails.rows
            undo.pop_all()

    @property
    def nbytes(self) -> int:
        return self._data.size

    def append(self, rows: Sequence[bytes]) -> None:
        self._data.append_all(rows)

    def commit(self, ends: bytes, sums: bytes) -> None:
        self._data.begin()
        self._data.sync()
        self._index.begin()
        self._index.append(ends)
        self._index.sync()
        if sums:
            if not self._sums.size:
                self._sums.append(header())
            known = (self._sums.size - HEADER.size) // WORD
            self._sums.append(padding(self.count - known) + sums)
            self._sums.sync()
        self.count += len(ends) // WORD

    def close(self) -> None:
        self._close_files()
        self._lock.release()

    def after_fork(self) -> None:
        self._close_files()
        self._lock.after_fork()

    def _close_files(self) -> None:
        for stream in (self._data, self._index, self._sums):
            stream.close()

    def _cut(self, tails: Tails, version: RowVersion) -> None:
        lost = tails.lost(self._index.size, self._data.size)
        # The checksums first: what has none may be cut, whenever a crash comes in between.
        self._sums.cut(tails.sums)
        self._sums.sync()
        self._index.cut(tails.index)
        self._index.sync()
        self._data.cut(tails.data)
        self._data.sync()
        if lost:
            warnings.warn(
                f"{version}: cut off {lost} after row {tails.rows}: the last writer ended before it flushed",
                RuntimeWarning,
                stacklevel=2,
            )


def _tails(version: RowVersion) -> Tails:
    streams = [MappedBytes(f"/{path}") for path in (version.index, version.sums, version.data)]
    index, sums, data = streams
    try:
        ends = words(index, 0, index.size // WORD)
        return whole_rows(ends, read_sums(sums, version), data.size, version)
    finally:
        for stream in streams:
            stream.close()
