"""Appends rows so that a crash at any moment leaves every row that was flushed, and no wrong one."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NoReturn, Protocol

from kara_cache.process_events import watch
from kara_cache.serialization import NoSerializer, Serializer
from kara_cache.storage.rows.row_sums import sums_of
from kara_cache.storage.rows.row_version import RowVersion
from kara_cache.storage.rows.step_behind import StepBehind

_SPILL_BYTES = 1 << 20  # of rows handed to the sink at a time, while they are in the processor's cache


class RowSink(Protocol):
    """Where rows are kept: the end of a version's three streams, for one writer at a time.

    After an error nothing more can be added: what was not committed is cut off when it is opened next.
    """

    @property
    def count(self) -> int:
        """Rows that are committed."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of data, also of rows that are not committed yet."""
        ...

    @property
    def waits(self) -> bool:
        """Whether `append` waits for a network; then a thread does."""
        ...

    def append(self, rows: Sequence[bytes]) -> None:
        """Adds rows to the data; nobody sees them yet. Maybe in another thread, never beside the rest."""
        ...

    def commit(self, ends: bytes, sums: bytes) -> None:
        """Makes the data durable, then the index entries of its rows, then their checksums."""
        ...

    def close(self) -> None:
        """Gives the place free for the next writer, without what is not committed. Idempotent."""
        ...

    def after_fork(self) -> None:
        """In a forked child: lets go of what the parent holds, and changes nothing else."""
        ...


class RowWriter:
    """Rows to a sink, collected. Thread-safe; in a forked child it only raises RuntimeError."""

    def __init__(self, version: RowVersion, sink: RowSink, *, commit_bytes: int) -> None:
        """
        Args:
            commit_bytes: After so much data rows are flushed without being asked for, so that a crash
                costs a bounded number of them and their index entries do not pile up in memory.
        """
        self._version = version
        self._sink = sink
        self._published = False  # by us
        self._commit_bytes = commit_bytes
        self._lock = threading.Lock()  # guards all below
        self._rows: list[bytes] = []
        self._rows_bytes = 0
        self._behind = StepBehind()  # what the sink is given while more rows are collected
        self._nbytes = sink.nbytes  # of rows that the sink has or is given
        self._ends = array("Q")  # of rows in the sink that are not committed
        self._sums = array("Q")
        self._committed = sink.nbytes
        self._told = sink.count  # rows, at the last flush
        self._broken: BaseException | None = None
        self._closed = False
        self._ended = False  # broken, closed or forked: one look in `write`
        self._forked_from: int | None = None
        self._pid = os.getpid()
        watch(self)

    def appender(self, serializer: Serializer) -> Callable[[Any], bool]:
        """A function that appends an object as a row: one call for each, because there are millions.

        It raises what `serializer` raises, and RuntimeError when nothing more can be written.
        """
        serialize, is_raw = serializer.serialize, type(serializer) is NoSerializer

        def write(obj: Any) -> bool:
            row = obj if is_raw and obj.__class__ is bytes else serialize(obj)
            with self._lock:
                if self._ended:
                    self._refuse()
                self._rows.append(row)
                self._rows_bytes += len(row)
                if self._rows_bytes >= _SPILL_BYTES:
                    self._run(self._spill)
            return True

        return write

    def flush(self) -> bool:
        """When it returns, all rows are durable and published. Whether there are more than last time."""
        with self._lock:
            self._run(self._commit)
            before, self._told = self._told, self._sink.count
            return before != self._told

    def close(self) -> None:
        """Flushes, and makes way for another writer, also where that fails. Idempotent."""
        with self._lock:
            if self._closed or self._forked_from is not None:
                return
            try:
                if self._broken is None:
                    self._run(self._commit)
                    if not self._published and not self._version.is_published():
                        self._sink.commit(b"", b"")  # an empty version has its files, too
                        self._version.publish()
            finally:
                self._closed = self._ended = True
                self._behind.close()
                self._sink.close()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._forked_from, self._ended, self._rows = self._pid, True, []
        self._behind.after_fork()
        self._sink.after_fork()

    def at_exit(self) -> None:
        """Nothing: what was not flushed is not promised."""

    def _run(self, step: Callable[[], None]) -> None:
        if self._ended:
            self._refuse()
        try:
            step()
        except BaseException as exc:
            self._broken, self._ended = exc, True
            raise

    def _refuse(self) -> NoReturn:
        if self._forked_from is not None:
            raise RuntimeError(f"Dataset is being written by process {self._forked_from}, not by this one")
        if self._closed:
            raise RuntimeError("Dataset is closed")
        raise RuntimeError(
            f"rows after row {self._sink.count} are not stored, because writing failed; "
            "open the data set again"
        ) from self._broken

    def _spill(self) -> None:
        rows = self._collected()
        if self._sink.waits:
            self._behind.start(partial(self._sink.append, rows))
        else:  # a copy to the kernel: a thread on another core has to fetch it from this one's memory first
            self._sink.append(rows)
        if self._nbytes - self._committed >= self._commit_bytes:
            self._commit()

    def _collected(self) -> list[bytes]:
        """The rows that were collected; from now on they count as the sink's."""
        rows, self._rows, self._rows_bytes = self._rows, [], 0
        ends = accumulate(map(len, rows), initial=self._nbytes)
        next(ends)
        self._ends.extend(ends)
        self._sums.extend(sums_of(rows))
        self._nbytes = self._ends[-1]
        return rows

    def _commit(self) -> None:
        rows = self._collected() if self._rows else None
        self._behind.wait()
        if rows:
            self._sink.append(rows)
        if not self._ends:
            return
        self._sink.commit(self._ends.tobytes(), self._sums.tobytes())
        self._ends, self._sums = array("Q"), array("Q")
        self._committed = self._nbytes
        if not self._published:
            self._version.publish()
            self._published = True


def open_writer(version: RowVersion, max_file_bytes: int) -> RowWriter:
    """For the end of a version, which need not be there yet.

    What a crash left behind the last flushed row is cut off, with a RuntimeWarning. Raises
    BlockingIOError while another writer is at it, FormatError where rows that were flushed are damaged,
    FileNotFoundError where their index is gone, io.UnsupportedOperation where the store takes no writes.
    """
    sink: RowSink
    version.check_index()
    if version.location.local is not None:
        from kara_cache.storage.rows.file_sink import FileSink

        sink = FileSink(version, max_file_bytes)
    else:
        from kara_cache.storage.rows.store_sink import StoreSink

        sink = StoreSink(version)
    return RowWriter(version, sink, commit_bytes=max_file_bytes)
