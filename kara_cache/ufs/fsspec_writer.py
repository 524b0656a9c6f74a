"""A file that is collected here and handed to a file system of fsspec as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from types import TracebackType

from fsspec.spec import AbstractFileSystem

from kara_cache.ufs.base import FileInfo

Put = Callable[[AbstractFileSystem, str], None]
"""Puts all the content at one path of a file system; may be called again after it failed."""

_PIPE_BYTES = 64 << 20  # up to here in one piece; above, `put_file` reads from disk as it needs


class FsspecWriter:
    """Pieces go to a temporary file of this machine; `commit` uploads it."""

    def __init__(self, replace: Callable[[Put], FileInfo]) -> None:
        self._replace = replace
        self._file = tempfile.NamedTemporaryFile(prefix="kara-upload-")  # noqa: SIM115 - closed by commit, abort
        self._committed: FileInfo | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return self._file.write(data)

    def commit(self) -> FileInfo:
        if self._committed is None:
            self._file.flush()  # ValueError when aborted
            self._committed = self._replace(self._put)
            self._file.close()
        return self._committed

    def abort(self) -> None:
        self._file.close()

    def __enter__(self) -> FsspecWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort()
        elif not self._file.closed:
            self.commit()

    def _put(self, system: AbstractFileSystem, target: str) -> None:
        if self._file.tell() > _PIPE_BYTES:
            system.put_file(self._file.name, target)
        else:
            self._file.seek(0)
            system.pipe_file(target, self._file.read())
