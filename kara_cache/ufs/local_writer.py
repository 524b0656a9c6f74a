"""The way a file gets into a directory so that nobody sees a part of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from kara_cache.errors import StaleVersion
from kara_cache.ufs.base import FileInfo
from kara_cache.ufs.left_file import LeftFile, open_left
from kara_cache.ufs.local_file import answers, file_info, version_of
from kara_cache.ufs.root_directory import Entry

TEMPORARY = re.compile(r"\.kara-tmp-[0-9a-f]{16}")
_COPY_BYTES = 1 << 20


class LocalWriter:
    """Pieces go to a hidden file beside the target; `commit` syncs it, renames it, syncs the directory.

    A process that is killed leaves the hidden file (`TEMPORARY`); listings do not show it, and
    `remove_abandoned` finds it by its lock, which nobody holds any more. With `go_on` the writer is a
    `ResumableWriter`: it takes over what an earlier one left, and writes only where bytes differ.
    """

    def __init__(
        self, path: str, full: str, entry: Entry, *, on_abort: Callable[[], None], go_on: bool = False
    ) -> None:
        """`entry` is copied and may be closed afterwards; `on_abort` undoes what the caller made for us."""
        self._path = path
        self._full = full
        self._on_abort = on_abort
        self._appends_to: str | None = None  # version of the file whose copy we began with
        self._committed: FileInfo | None = None
        self._directory = entry.open_parent()
        self._target = Entry(self._directory, entry.name)
        try:
            self._file: BinaryIO | LeftFile = self._open_left() if go_on else self._make_temporary()
        except OSError:
            os.close(self._directory)
            raise

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

    def suspend(self) -> None:
        """Without `go_on` nobody would find it again, and it is an `abort`."""
        if isinstance(self._file, LeftFile):
            if not self._file.closed:
                self._close()
        else:
            self.abort()

    def __enter__(self) -> LocalWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.suspend()
        elif not self._file.closed:
            self.commit()

    def _make_temporary(self) -> BinaryIO:
        while True:
            self._temporary = f".kara-tmp-{secrets.token_hex(8)}"
            fd = Entry(self._directory, self._temporary).open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
            if _lock(fd):
                return os.fdopen(fd, "w+b")
            os.close(fd)  # taken for abandoned before it was locked

    def _open_left(self) -> BinaryIO | LeftFile:
        """What an earlier writer of this name left, if nobody else has it; else a file of our own."""
        name = f".kara-tmp-{hashlib.blake2b(os.fsencode(self._target.name), digest_size=8).hexdigest()}"
        left = open_left(Entry(self._directory, name))
        if left is None:
            return self._make_temporary()
        self._temporary = name
        return left

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
                if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                    os.unlink(path)  # else it was committed meanwhile, and the name is another writer's
                    removed += 1
            finally:
                os.close(fd)
    return removed


class UnfinishedFiles:
    """`Unfinished` of a directory. Locks tell who still writes, so that nothing has to grow old first."""

    def __init__(self, directory: str, open_writer: Callable[[str], LocalWriter]) -> None:
        self._directory = directory
        self._open_writer = open_writer

    def open_writer(self, path: str) -> LocalWriter:
        return self._open_writer(path)

    def clear(self, finished: Collection[str]) -> int:
        return remove_abandoned(self._directory)
