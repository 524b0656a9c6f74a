"""Open files of the fsspec face that are read: one version, with read-ahead."""

from __future__ import annotations

import io
import logging
import operator
from typing import TYPE_CHECKING, Any, Protocol

from fsspec.caching import BaseCache
from fsspec.spec import AbstractBufferedFile

from kara_cache.errors import StaleVersion
from kara_cache.ufs.base import FileInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from kara_cache.filesystem import KaraFileSystem

logger = logging.getLogger(__name__)

PEEK_BYTES = 8 << 10  # what a line is looked for in; the buffer size of Python's own text files


class RangeReader(Protocol):
    """What `CacheClient.open_reader` returns: one version of one file, with read-ahead; survives `fork()`."""

    def read_at(self, start: int, length: int) -> bytes | memoryview: ...

    def readinto_at(self, start: int, buffer: memoryview) -> int: ...

    def close(self) -> None: ...


class KaraFile(AbstractBufferedFile):
    """A file open for reading; every byte it returns is of the version that `open` saw.

    When the store no longer has that version and the cache does not hold the bytes, a read raises
    `StaleVersion`: reopen to get the new one. Reads block until all that was asked for is there,
    short only at the end. Like other Python files it has one position, so threads that share it
    need a lock of their own. It pickles as (path, version, position) and survives `fork()`.

    Nothing of fsspec's buffering is used: read-ahead is the client's, and `readinto` fills the
    caller's buffer. The base class makes it a file that fsspec's `blockcache::` can work with.
    """

    # of every open file; `close`, `loc` and the like are of an instance
    mode = "rb"
    autocommit = True
    start = end = None
    closed = True  # of one that was never opened: fsspec has a property here, which costs more
    _given_cache: Any = None  # `blockcache::` put its own there
    _reader: RangeReader | None = None

    def __init__(
        self,
        fs: KaraFileSystem,
        path: str,
        file: FileInfo,
        *,
        position: int = 0,
        content: bytes | None = None,
    ) -> None:
        """`content` is all of the file, if it came with the facts.

        What fsspec's constructor makes is made when somebody asks for it: it would cost more than a read.
        """
        self.fs = fs
        self.path = path
        self.size = file.size
        self.loc = position
        self.closed = False
        self._file = file
        self._content = content
        self._ends = (-1, -1)  # of the latest two reads made without a reader

    @property
    def blocksize(self) -> int:
        return self.fs.blocksize

    @property
    def kwargs(self) -> dict[str, Any]:
        return {}

    @property
    def details(self) -> dict[str, Any]:
        return self.fs.entry(self._file, self.path)

    @property
    def cache(self) -> Any:
        """What fsspec reads through; none unless somebody put one here."""
        if self._given_cache is None and not self.closed:
            return BaseCache(self.blocksize, self._fetch_range, self.size)
        return self._given_cache

    @cache.setter
    def cache(self, cache: Any) -> None:
        self._given_cache = cache

    def readinto(self, buffer: Any) -> int:  # Any: the buffer protocol has no name before Python 3.12
        self._check_open()
        view = memoryview(buffer).cast("B")
        start = self.loc
        length = min(len(view), self.size - start)
        if length <= 0:
            return 0
        if self._given_cache is not None or self._content is not None:
            data = self._bytes_at(start, length)
            count = len(data)
            view[:count] = data
        else:
            count = self._fill(start, view[:length])
        self.loc += count
        return count

    def read(self, length: int | None = -1) -> bytes:
        if self.closed:
            self._check_open()
        start = self.loc
        left = self.size - start
        if length is None or length < 0 or length > left:
            length = left
        data = self._bytes_at(start, length)
        self.loc = start + len(data)
        return data

    read1 = read
    readinto1 = readinto

    def peek(self, size: int = PEEK_BYTES) -> bytes:
        """Bytes from the position on, without moving it."""
        self._check_open()
        return self._bytes_at(self.loc, max(size, PEEK_BYTES))

    # Python's own, which look for the line's end with `peek`; fsspec's read a block for each line
    readline = io.IOBase.readline
    readlines = io.IOBase.readlines

    def view(self, start: int, length: int) -> memoryview:
        """Bytes [start, start + length), fewer at the end, without a copy where that can be had.

        As `CacheClient.view`, which says what such a view promises. The position stays where it is.
        """
        self._check_open()
        if start < 0 or length < 0:
            raise ValueError(f"{self.path}: a view of {length} bytes at {start}")
        if self._content is not None:
            return memoryview(self._content)[start : start + length]
        try:
            return self.fs.client.view(self._file, start, length)
        except FileNotFoundError:
            self._move()
            return self.fs.client.view(self._file, start, length)

    def seek(self, loc: int, whence: int = 0) -> int:
        self._check_open()
        loc = operator.index(loc)
        if whence == 1:
            loc += self.loc
        elif whence == 2:
            loc += self.size
        elif whence != 0:
            raise ValueError(f"seek: whence {whence}, want 0, 1 or 2")
        if loc < 0:
            raise ValueError(f"seek: {loc} is before start of {self.path}")
        self.loc = loc
        return loc

    def tell(self) -> int:
        self._check_open()
        return int(self.loc)

    def close(self) -> None:
        if self._reader is not None:
            self._close_reader()
        if self._given_cache is not None:
            super().close()
        self._content = None
        self.closed = True

    def __del__(self) -> None:
        if not self.closed:
            self.close()

    def __enter__(self) -> KaraFile:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., KaraFile], tuple[Any, ...]]:
        return _reopen, (self.fs, self.path, self._file, self.loc)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.loc} of {self.size}"
        return f"<KaraFile {self.path} {state}, version {self._file.version or 'unknown'}>"

    __str__ = __repr__

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self._content is not None:
            return self._content[start:end]
        reader = self._reader_for(start, end)
        try:
            if reader is None:
                return self.fs.client.read(self._file, start, end - start)
            return bytes(reader.read_at(start, end - start))
        except FileNotFoundError:
            self._move()
            return self.fs.client.read(self._file, start, end - start)

    def _fill(self, start: int, view: memoryview) -> int:
        reader = self._reader_for(start, start + len(view))
        try:
            if reader is None:
                return self.fs.client.read_into(self._file, start, view)
            return reader.readinto_at(start, view)
        except FileNotFoundError:
            self._move()
            return self.fs.client.read_into(self._file, start, view)

    def _bytes_at(self, start: int, length: int) -> bytes:
        length = min(length, self.size - start)
        if length <= 0:
            return b""
        if self._given_cache is not None:
            return bytes(self._given_cache._fetch(start, start + length))
        return self._fetch_range(start, start + length)

    def _reader_for(self, start: int, stop: int) -> RangeReader | None:
        """The reader with read-ahead, from the first read on that continues one of the two before it.

        A file that is read once, or here and there, does without its lock and its window.
        """
        reader = self._reader
        if reader is None:
            if start in self._ends:
                reader = self._reader = self.fs.client.open_reader(self._file, position=start)
            else:
                self._ends = (stop, self._ends[0])
        return reader

    def _move(self) -> None:
        """Goes on with the same version where it is now.

        The kara path of a url changes when a private worker starts again without our mounts, and
        when a cluster that could not be reached is back.
        """
        old, new = self._file, self.fs.file_info(self.path)
        if (old.version, old.size) != (new.version, new.size):
            raise StaleVersion(f"{old.path}: version {old.version} was opened, {new.path} is {new.version}")
        self._file = new
        self._close_reader()

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"I/O operation on closed file {self.path}")


def _reopen(fs: KaraFileSystem, path: str, file: FileInfo, position: int) -> KaraFile:
    return KaraFile(fs, path, file, position=position)
