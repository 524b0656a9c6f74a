"""A row data set as people use it: a file of rows, and a sequence of them."""

from __future__ import annotations

import dataclasses
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from kara_cache.serialization import JSONSerializer, Serializer
from kara_cache.storage.location import Location
from kara_cache.storage.rows.row_check import RowCheck, check_rows
from kara_cache.storage.rows.row_cursor import RowCursor
from kara_cache.storage.rows.row_indices import row_numbers
from kara_cache.storage.rows.row_objects import FetchedRows, RowObjects
from kara_cache.storage.rows.row_options import RowOptions
from kara_cache.storage.rows.row_reader import Row, RowReader
from kara_cache.storage.rows.row_version import RowVersion

if TYPE_CHECKING:
    from kara_cache.storage.rows.row_keys import RowKeys
    from kara_cache.storage.rows.row_writer import RowWriter

MODES = ("r", "w")


class RowDataset:
    """Rows of one version, in the order they were written. Made by `KaraStorage.open`.

    A file of rows: `read`, `seek`, `tell`, with mode "w" `write` and `flush`; and a sequence: indices,
    slices, lists and arrays of indices, iteration from the start. A reader sees the rows that were there
    when it was opened first. Every row is compared with its checksum where there is one; a damaged row is
    a FormatError that names it, also one whose bytes the serializer cannot read.

    Thread-safe, usable in forked children, and pickles as its arguments: a worker of a DataLoader opens
    the files itself, with the same rows and window. With mode "w" it does neither.
    """

    def __init__(
        self,
        version: RowVersion,
        mode: str,
        serializer: Serializer,
        options: RowOptions,
        *,
        count: int | None,
    ) -> None:
        """Nothing is read before the first use, unless mode is "w"; `open` is what others call."""
        self.version = version
        self.mode = mode
        self.options = options
        self._objects = RowObjects(serializer, version)
        self._decode = self._objects.decode
        self._count = count  # of rows of the version; None until it is opened first
        self._opened: RowReader | None = None
        self._closed = False
        self._start, self._stop = 0, 0  # the window, once it is opened
        self._row: Callable[[int], Row] = _not_open
        self._cursor = RowCursor()
        self._keys: list[RowKeys | None] = []  # once it was looked for
        self._writer: RowWriter | None = None
        if mode == "w":
            from kara_cache.storage.rows.row_writer import open_writer

            self._writer = open_writer(version, options.max_file_size)
            self.write = self._writer.appender(serializer)  # type: ignore[assignment, method-assign]

    @classmethod
    def open(
        cls,
        location: Location,
        namespace: str,
        key: str,
        mode: str,
        version: object,
        serialization: Serializer | None = None,
        **options: Any,
    ) -> RowDataset:
        """As `KaraStorage.open_dataset`."""
        if mode not in MODES:
            raise ValueError(f"Unknown mode `{mode}`: a data set opens with {' or '.join(map(repr, MODES))}")
        chosen = RowOptions.of(options)
        if mode == "w" and (chosen.start or chosen.length is not None):
            raise ValueError("a window (start, length) is for reading, not for mode 'w'")
        found = RowVersion.find(location, namespace, key, version, mode)
        dataset = cls(found, mode, serialization or JSONSerializer(), chosen, count=None)
        if mode == "r" and not dataset._reader().count:
            found.check_files()
        return dataset

    def __repr__(self) -> str:
        """Asks the store for nothing: `__del__` and debuggers show it at any time."""
        known = "open" if self._opened is None else f"{self._stop - self._start} rows"
        state = "closed" if self._closed else known
        return f"<RowDataset {state}, mode {self.mode!r}, {self.version}>"

    # -- a sequence --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Rows of the window; with mode "w" those that are flushed."""
        self._reader()
        return self._stop - self._start

    def __getitem__(self, key: Any) -> Any:
        """A row by its number, negative ones from the end, or by its key where it was published with keys.

        Slices, and sequences or arrays of numbers as in `read_batch`, give a list of rows.

        Raises:
            IndexError, KeyError: there is no such row.
            TypeError: nothing of these.
        """
        if key.__class__ is int:  # most calls come here, and it shows
            number = key + self._start
            if not self._start <= number < self._stop:
                number = self._numbers((key,))[0]  # negative, out of range, or nothing is open yet
            row = self._row(number)
            if self._decode is None:
                return row
            try:
                return self._decode(row)
            except ValueError:
                return self._objects.one(number, row)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._range(range(self._start + start, self._start + max(start, stop)))
            return self.read_batch(range(start, stop, step))
        if isinstance(key, str):
            return self[self._number_of_key(key)]
        try:
            number = operator.index(key)
        except TypeError:
            return self.read_batch(key)
        return self[number]

    def __iter__(self) -> Iterator[Any]:
        """All rows from the first one, wherever `read` is; fetched `buffer_size` bytes at a time."""
        return chain.from_iterable(self.fetch_range(0, len(self)))

    def read_batch(self, indices: Any) -> list[Any]:
        """The rows with these numbers, in this order, in one go.

        Args:
            indices: a sequence or array of ints, negative ones from the end; or an array of bool, one
                for each row.

        Raises:
            IndexError: one is out of range.
        """
        numbers = self._numbers(indices)
        return self._objects.all(numbers, self._reader().gather(numbers))

    def fetch_batch(self, indices: Any) -> FetchedRows:
        """The same rows, read now and made into objects as they are iterated over, by whoever does that."""
        numbers = self._numbers(indices)
        rows, at_hand = self._reader().fetch(numbers)
        return FetchedRows(self._objects, numbers, rows, at_hand=at_hand)

    def fetch_range(self, start: int, stop: int) -> Iterator[FetchedRows]:
        """Rows [start, stop), which must be in [0, len], in their order, `buffer_size` bytes at a time."""
        reader, objects, first = self._reader(), self._objects, self._start
        for batch in reader.batches(first + start, first + stop, self.options.buffer_size):
            yield FetchedRows(objects, range(*batch), reader.rows(*batch))

    def range_bytes(self, start: int, stop: int) -> int:
        """Bytes of rows [start, stop) together, which must be in [0, len]; reads none of them."""
        return self._reader().size_of(self._start + start, self._start + stop)

    def read_raw_batch(self, indices: Any) -> Sequence[bytes | memoryview]:
        """The same, without making objects of them; read-only views where rows come from a store."""
        return self._reader().gather(self._numbers(indices))

    def read_into(self, index: int, buffer: memoryview | bytearray) -> int:
        """The bytes of a row into the start of `buffer`, without a copy between: how many there are.

        Raises IndexError, and ValueError where the buffer is too small (the message says by how much).
        """
        return self._reader().read_into(self._numbers([index])[0], buffer)

    def slice(self, start: int = 0, length: int | None = None) -> RowDataset:
        """A data set of its own with rows [start, start + length) of this one; none beyond its end."""
        window = self._window(start, length)
        options = dataclasses.replace(self.options, start=window.start, length=len(window))
        part = RowDataset(self.version, "r", self._objects.serializer, options, count=self._count)
        part._adopt(self._reader().retain())
        return part

    def slice_(self, start: int = 0, length: int | None = None) -> None:
        """Makes this data set itself that window, and rewinds it."""
        window = self._window(start, length)
        self.options = dataclasses.replace(self.options, start=window.start, length=len(window))
        self._start, self._stop = window.start, window.stop
        self._cursor.move(lambda _: 0)

    @property
    def serialization(self) -> Serializer:
        """How rows become objects."""
        return self._objects.serializer

    @property
    def mapped(self) -> bool:
        """Whether rows lie on this machine, so that reading ahead in a thread gains nothing."""
        return self._reader().mapped

    @property
    def keys(self) -> RowKeys | None:
        """The keys that the rows were published with (`kara_cache.kv`), if they were."""
        if not self._keys:
            from kara_cache.storage.rows.row_keys import PLACE, RowKeys

            path = "/".join((self.version.directory, *PLACE))
            self._keys.append(RowKeys.open(self.version.location.store, path))
        return self._keys[0]

    def verify(self, progress: Callable[[int], None] | None = None) -> RowCheck:
        """Reads every row of the window and names the damaged ones; `progress` gets numbers of rows."""
        reader = RowReader(self.version, count=self._reader().count)
        try:
            return check_rows(reader, self._start, self._stop, progress)
        finally:
            reader.close()

    # -- a file ------------------------------------------------------------------------------------

    def read(self) -> Any:
        """The next row, None at the end. Each row goes to one thread."""
        found = self._cursor.next(self._fetch)
        if found is None or self._decode is None:
            return found and found[1]
        return self._objects.one(found[0] + self._start, found[1])

    def pread(self, index: int) -> Any:
        """A row by its number; `read` goes on where it was. Raises EOFError past the end."""
        try:
            return self[operator.index(index)]
        except IndexError as exc:
            raise EOFError(str(exc)) from None

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves what `read` reads next, and returns where it is.

        Args:
            offset: rows from the first (whence 0), from the current one (1), or back from the end (2);
                what leads out of the data set ends at its first or past its last row.
        """
        if whence not in (0, 1, 2):
            raise ValueError(f"whence: expected 0, 1 or 2, got {whence!r}")
        size = len(self)
        offset = operator.index(offset)

        def where(at: int) -> int:
            wanted = (offset, at + offset, size - offset)[whence]
            return max(0, min(wanted, size))

        return self._cursor.move(where)

    def tell(self) -> int:
        """The number of the row that `read` reads next."""
        return self._cursor.tell()

    def size(self) -> int:
        """The same as `len`."""
        return len(self)

    def nbytes(self) -> int:
        """Bytes of all rows of the version, not only of the window."""
        return self._reader().nbytes

    def write(self, obj: Any) -> bool:
        """Appends a row, and returns True. It is lost in a crash until `flush` has returned.

        Raises RuntimeError with mode "r" or when closed, TypeError for what the serializer refuses.
        """
        # Where rows can be written, the object has a `write` of its own.
        raise RuntimeError("Dataset is closed" if self._closed else "Dataset is not writable: mode 'r'")

    def flush(self) -> None:
        """All rows are durable when it returns, and the version is the latest. With mode "r" does nothing."""
        if self._closed:
            raise RuntimeError("Dataset is closed")
        if self._writer is not None and self._writer.flush():
            self._forget()

    def close(self) -> None:
        """Flushes. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> RowDataset:
        return self

    def __exit__(self, *_: object) -> None:
        """Rows that were written stay, also when the block ends with an exception, as those of a file."""
        self.close()

    def __reduce__(self) -> tuple[Callable[..., RowDataset], tuple[Any, ...]]:
        if self.mode == "w":
            raise TypeError(f"{self!r} is being written and stays in its process; open it to read instead")
        count = None if self._closed else self._reader().count
        return _rebuild, (self.version, self._objects.serializer, self.options, count)

    # -- inside ------------------------------------------------------------------------------------

    def _reader(self) -> RowReader:
        reader = self._opened
        if reader is None:
            if self._closed:
                raise RuntimeError("Dataset is closed")
            reader = RowReader(self.version, count=self._count, verify=self.options.verify)
            self._adopt(reader)
        return reader

    def _adopt(self, reader: RowReader) -> None:
        start = min(self.options.start, reader.count)
        length = reader.count - start if self.options.length is None else self.options.length
        self._start, self._stop = start, min(start + length, reader.count)
        if self.mode == "r":
            self._count = reader.count
        self._row = reader.bytes_function() if self._objects.wants_bytes else reader.row_function()
        self._opened = reader

    def _forget(self) -> None:
        """The next read looks again at what is there."""
        reader, self._opened = self._opened, None
        self._row = _not_open
        self._start = self._stop = 0
        if reader is not None:
            reader.close()

    def _fetch(self, at: int) -> Sequence[Row]:
        reader = self._reader()
        for start, stop in reader.batches(self._start + at, self._stop, self.options.buffer_size):
            return self._objects.plain(reader.rows(start, stop))
        return ()

    def _window(self, start: int, length: int | None) -> range:
        start = operator.index(start)
        if start < 0 or (length is not None and length < 0):
            raise ValueError(f"a window begins at 0 or later and has no negative length: {start}, {length}")
        first = min(self._start + start, self._start + len(self))
        stop = self._stop if length is None else min(first + operator.index(length), self._stop)
        return range(first, stop)

    def _numbers(self, indices: Any) -> Sequence[int]:
        count = len(self)  # opens it
        return row_numbers(indices, self._start, count)

    def _number_of_key(self, key: str) -> int:
        if self.keys is None:
            raise TypeError(f"Dataset index must be int, got {key!r}: these rows were published without keys")
        number = self.keys.find(key)
        if number is None or not self._start <= number < self._start + len(self):
            raise KeyError(key)
        return number - self._start

    def _range(self, numbers: range) -> list[Any]:
        return self._objects.all(numbers, self._reader().rows(numbers.start, numbers.stop))

    def __del__(self) -> None:
        writer = getattr(self, "_writer", None)  # the constructor may have failed
        if writer is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()


def _not_open(number: int) -> Row:
    raise RuntimeError(f"Dataset is closed: row {number}")


def _rebuild(
    version: RowVersion, serializer: Serializer, options: RowOptions, count: int | None
) -> RowDataset:
    return RowDataset(version, "r", serializer, options, count=count)
