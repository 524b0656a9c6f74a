"""The way a file gets into a directory so that nobody sees a part of it."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from kara_cache.errors import StaleVersion
from kara_cache.ufs.base import FileInfo
from kara_cache.ufs.local_file import answers, file_info, version_of
from kara_cache.ufs.root_directory import Entry

TEMPORARY = re.compile(r"\.kara-tmp-[0-9a-f]{16}")
_COPY_BYTES = 1 << 20


class LocalWriter:
    """Pieces go to a hidden file beside the target; `commit` syncs it, renames it, syncs the directory.

    A process that is killed leaves the hidden file (`TEMPORARY`); listings do not show it, and
    `remove_abandoned` finds it by its lock, which nobody holds any more.
    """

    def __init__(self, path: str, full: str, entry: Entry, *, on_abort: Callable[[], None]) -> None:
        """`entry` is copied and may be closed afterwards; `on_abort` undoes what the caller made for us."""
        self._path = path
        self._full = full
        self._on_abort = on_abort
        self._appends_to: str | None = None  # version of the file whose copy we began with
        self._committed: FileInfo | None = None
        self._directory = entry.open_parent()
        self._target = Entry(self._directory, entry.name)
        try:
            fd = self._make_temporary()
        except OSError:
            os.close(self._directory)
            raise
        self._file: BinaryIO = os.fdopen(fd, "w+b")

    def copy_existing(self) -> None:
        """Begins with what is there, for appending: as many bytes are copied as the file has."""
        with answers(self._full):
            try:
                source = os.fdopen(self._target.open(os.O_RDONLY | os.O_NONBLOCK), "rb")
            except FileNotFoundError:
                return
            with source:
                self._appends_to = version_of(os.fstat(source.fileno()))
                shutil.copyfileobj(source, self._file, _COPY_BYTES)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        with answers(self._full):
            return self._file.write(data)

    def commit(self) -> FileInfo:
        if self._committed is None:
            with answers(self._full):
                self._file.flush()  # ValueError when aborted
                self._take_over()
                os.fsync(self._file.fileno())
                os.rename(
                    self._temporary,
                    self._target.name,
                    src_dir_fd=self._directory,
                    dst_dir_fd=self._directory,
                )
                os.fsync(self._directory)
                self._committed = file_info(self._path, os.fstat(self._file.fileno()))
            self._close()
        assert self._committed is not None
        return self._committed

    def abort(self) -> None:
        if not self._file.closed:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._directory)
            self._close()
            self._on_abort()

    def __enter__(self) -> LocalWriter:
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

    def _make_temporary(self) -> int:
        while True:
            self._temporary = f".kara-tmp-{secrets.token_hex(8)}"
            fd = Entry(self._directory, self._temporary).open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
            if _lock(fd):
                return fd
            os.close(fd)  # taken for abandoned before it was locked

    def _take_over(self) -> None:
        """Keeps the mode of the file that is replaced; never appends to another version than it copied."""
        try:
            old = self._target.stat()
        except FileNotFoundError:
            old = None
        if self._appends_to is not None and (old is None or version_of(old) != self._appends_to):
            raise StaleVersion(f"{self._full}: version {self._appends_to} changed while it was appended to")
        if old is not None and stat.S_ISREG(old.st_mode):
            os.fchmod(self._file.fileno(), stat.S_IMODE(old.st_mode))

    def _close(self) -> None:
        self._file.close()
        os.close(self._directory)


def _lock(fd: int) -> bool:
    """False when `remove_abandoned` was faster."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks, where nothing is ever taken for abandoned
    return os.fstat(fd).st_nlink > 0


def remove_abandoned(directory: str) -> int:
    """Deletes the hidden files that killed writers left in a directory; returns how many.

    Those of writers that live are locked, also by processes of other machines where the file system
    passes locks on (NFS does). A directory that is not there has none.
    """
    removed = 0
    try:
        names = [name for name in os.listdir(directory) if TEMPORARY.fullmatch(name)]
    except FileNotFoundError:
        return 0
    for name in names:
        path = os.path.join(directory, name)
        with suppress(OSError):  # gone meanwhile, locked, or not ours to delete
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                removed += 1
            finally:
                os.close(fd)
    return removed
