"""The port to an under store (UFS): what the cache needs of any place that keeps files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One version of one file, or a directory.

    `path` is relative to whoever returned it: to the store's root for an `UnderStore` (no leading
    slash, "" is the root), a full `/mount/...` path above the mount table.
    """

    path: str
    size: int  # bytes; 0 for a directory
    version: str  # opaque, equal only for equal content; "" where the store has nothing to pin by
    mtime: float | None = None  # seconds since the epoch
    is_dir: bool = False


Progress = Callable[[int], None]
"""Called with the number of bytes of the buffer that are valid so far; must be quick, any thread."""


class UnderStore(Protocol):
    """A place that keeps files, reached with credentials given at construction.

    Laws, the same for every store (`tests/contract/test_under_store.py` runs them all):

    - Paths are relative to the store's root URL, separated by "/", and never leave it: a path with
      "..", a NUL or an empty segment is a ValueError before anything is sent.
    - Thread-safe; every call ends within the store's own timeout; transient failures are retried
      inside, with backoff, and what remains is `UnderStoreError`. Missing files, missing rights,
      directories in the place of files are FileNotFoundError, PermissionError, IsADirectoryError.
    - No method keeps a reference to a caller's buffer after it returned.
    """

    @property
    def url(self) -> str:
        """The root, for messages: no user, password or signature in it."""
        ...

    def info(self, path: str) -> FileInfo:
        """The file's current size and version, or the directory (a common prefix counts as one)."""
        ...

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        """The direct children, sorted by path; with `recursive` every file below, no directories.

        A directory sorts as if its path ended in "/" (`path.listing_key`), as in object stores.
        Pages are fetched as the iterator advances, so a million entries do not sit in memory.
        A file yields itself. Raises FileNotFoundError where nothing is there.
        """
        ...

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Fills `buffer` from byte `start` and returns how many bytes were there (short only at the end).

        With `version`, every byte is of that version or StaleVersion is raised: by a conditional
        request where the store has one, by comparing what the response says otherwise. A read that
        starts at or past the end returns 0. A response that lies (other range, short body) is
        retried, then UnderStoreError; it never leaves wrong bytes behind a normal return.
        """
        ...

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        """Replaces the file as a whole; readers see the old or the new version, never a part."""
        ...

    def open_writer(self, path: str, *, append: bool = False) -> UnderStoreWriter:
        """A file written in pieces. With `append` where the store cannot: io.UnsupportedOperation."""
        ...

    def delete(self, path: str) -> None:
        """Removes a file, or an empty directory. Not empty: OSError (ENOTEMPTY)."""
        ...

    def make_directory(self, path: str) -> None:
        """Makes one directory and its parents; existing ones are fine. A no-op where stores have none."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class UnderStoreWriter(Protocol):
    """Bytes become visible at `commit`, all at once; leaving the block by an exception aborts.

    Leaving it otherwise commits what was not committed or aborted. Both are idempotent; writing
    after either, or committing what was aborted, is a ValueError.
    """

    def write(self, data: bytes | bytearray | memoryview) -> int: ...

    def commit(self) -> FileInfo: ...

    def abort(self) -> None: ...

    def __enter__(self) -> UnderStoreWriter: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
