"""Rows at the end of a version in an object store: every flush adds a segment to each stream."""

from __future__ import annotations

import errno
import io
import warnings
from collections.abc import Sequence
from contextlib import ExitStack

from kara_cache.storage.location import read_whole
from kara_cache.storage.rows.byte_stream import open_byte_stream
from kara_cache.storage.rows.row_sums import HEADER, header, padding, read_sums
from kara_cache.storage.rows.row_version import RowVersion
from kara_cache.storage.rows.segment_files import check_no_gap
from kara_cache.storage.rows.segments import SUFFIX
from kara_cache.storage.rows.torn_tail import Tails, whole_rows
from kara_cache.storage.rows.words import WORD, words
from kara_cache.ufs.base import UnderStore, UnderStoreWriter


class StoreSink:
    """A `RowSink` of whole objects: data, then index, then checksums. They are sent while rows come in.

    Segments may have any size for readers, and are never appended to, so stores that cannot append are as
    good as others. There is nothing to lock with: a second writer is noticed when it has written the
    segment that we are about to write, and then refused; two that write it in the same moment are not.
    """

    waits = True

    def __init__(self, version: RowVersion) -> None:
        """Raises io.UnsupportedOperation, FormatError; cuts a torn tail with a RuntimeWarning."""
        location = version.location
        if not location.writable:
            raise io.UnsupportedOperation(f"{location.url} can only be read")
        self._version = version
        store = location.store
        self._data = StoredSegments(store, version.data)
        self._index = StoredSegments(store, version.index)
        self._sums = StoredSegments(store, version.sums)
        self._writer: UnderStoreWriter | None = None
        tails = _tails(version, self._data.size)
        self.nbytes = tails.data
        self.count = tails.rows
        self._cut(tails)

    def append(self, rows: Sequence[bytes]) -> None:
        joined = b"".join(rows)
        if joined:
            if self._writer is None:
                self._writer = self._data.open_next()
            self._writer.write(joined)
            self.nbytes += len(joined)

    def commit(self, ends: bytes, sums: bytes) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._data.commit(writer)
        if not self._data.count:
            self._data.write(b"")  # the published package wants a first segment, be it empty
        if ends or not self._index.count:
            self._index.write(ends)
        if sums:
            first = header() if not self._sums.size else b""
            known = max(0, self._sums.size - HEADER.size) // WORD
            self._sums.write(first + padding(self.count - known) + sums)
        self.count += len(sums) // WORD

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()

    def after_fork(self) -> None:
        self._writer = None

    def _cut(self, tails: Tails) -> None:
        lost = tails.lost(self._index.size, self._data.size)
        self._sums.cut(tails.sums)
        self._index.cut(tails.index)
        self._data.cut(tails.data)
        if lost:
            warnings.warn(
                f"{self._version}: cut off {lost} after row {tails.rows}: "
                "the last writer ended before it flushed",
                RuntimeWarning,
                stacklevel=2,
            )


class StoredSegments:
    """`N.blk` of one directory of a store, to which whole segments are added."""

    def __init__(self, store: UnderStore, directory: str) -> None:
        """Raises FormatError for segments behind a gap."""
        self._store = store
        self._directory = directory
        self._sizes = _sizes(store, directory)

    @property
    def count(self) -> int:
        return len(self._sizes)

    @property
    def size(self) -> int:
        return sum(self._sizes)

    def open_next(self) -> UnderStoreWriter:
        return self._store.open_writer(self._name(self.count))

    def commit(self, writer: UnderStoreWriter) -> None:
        """Raises BlockingIOError where somebody else has written this segment."""
        with ExitStack() as undo:
            undo.callback(writer.abort)
            self._refuse_taken()
            self._sizes.append(writer.commit().size)
            undo.pop_all()

    def write(self, data: bytes) -> None:
        self._refuse_taken()
        self._store.write(self._name(self.count), data)
        self._sizes.append(len(data))

    def cut(self, size: int) -> None:
        """Makes the stream end at byte `size`; the last segments go first, so that there is never a gap."""
        while self.size > size:
            name, surplus = self._name(self.count - 1), self.size - size
            if self._sizes[-1] <= surplus:
                self._store.delete(name)
                self._sizes.pop()
            else:
                kept = self._sizes[-1] - surplus
                self._store.write(name, read_whole(self._store, name)[:kept])
                self._sizes[-1] = kept

    def _refuse_taken(self) -> None:
        name = self._name(self.count)
        try:
            found = self._store.info(name)
        except (FileNotFoundError, NotADirectoryError):
            return
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            f"another writer has added {found.size} bytes meanwhile, and only one may write: "
            f"{self._store.url}/{name}",
        )

    def _name(self, number: int) -> str:
        return f"{self._directory}/{number}{SUFFIX}"


def _sizes(store: UnderStore, directory: str) -> list[int]:
    found = {}
    try:
        for entry in store.list(directory):
            name = entry.path.rpartition("/")[2]
            number = name.removesuffix(SUFFIX)
            if number.isdecimal() and name == f"{int(number)}{SUFFIX}":
                found[int(number)] = entry.size
    except (FileNotFoundError, NotADirectoryError):
        return []
    check_no_gap(found, f"{store.url}/{directory}")
    return [found[number] for number in sorted(found)]


def _tails(version: RowVersion, data_size: int) -> Tails:
    index = open_byte_stream(version.location, version.index)
    sums = open_byte_stream(version.location, version.sums)
    try:
        ends = words(index, 0, index.size // WORD)
        return whole_rows(ends, read_sums(sums, version), data_size, version)
    finally:
        index.close()
        sums.close()
