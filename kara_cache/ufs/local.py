"""A directory of this machine, or of a mounted file system (NFS, Lustre, ...)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs.base import FileInfo, Progress
from kara_cache.ufs.local_file import answers, changed, file_info, refuse_special, version_of
from kara_cache.ufs.local_writer import TEMPORARY, LocalWriter, UnfinishedFiles
from kara_cache.ufs.options import parse_options
from kara_cache.ufs.path import check_path, listing_key
from kara_cache.ufs.root_directory import RootDirectory

PROGRESS_BYTES = 256 << 10
_STAT_BATCH = 256  # entries of a listing that are looked at while its directory is open
_READ = os.O_RDONLY | os.O_NONBLOCK  # non-blocking: a FIFO swapped in must not hang us

_Identity = tuple[int, int]  # device and inode
_Names = list[str]  # in LocalStore `list` is the verb
_Found = list[tuple[FileInfo, _Identity]]


class LocalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A local store has no options."""


class LocalStore:
    """An `UnderStore` of the regular files below `root`; links inside the root are followed.

    The version is size, mtime, ctime and inode. ctime is there because a file can be overwritten
    with its old size and mtime (rsync --inplace, cp -p), at the price that chmod or a hard link
    makes a new version, too. Two limits remain: kernels before 6.13 stamp files by the clock tick
    (1 to 10 ms), so two overwrites in place within one tick look the same; and a file that is being
    overwritten in place right when `info` is called has its new stamp already and some old bytes
    still. Files replaced by rename, as `write` does, have neither.

    A path on a hard-mounted NFS whose server is gone blocks in the kernel: no timeout reaches there.
    The root itself must exist (`make_directory("")` makes it): a mount point that is not mounted
    should fail, and not fill the disk below it.
    """

    def __init__(self, root: str) -> None:
        if not root.startswith("/"):
            raise ConfigError(f"local store {root!r}: expected an absolute path")
        self._root = RootDirectory(root)

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any]) -> LocalStore:
        """`file:///abs`, `local:///abs` or `/abs`; taken literally, not percent-decoded, as fsspec does."""
        parse_options(options, LocalOptions, url=url)
        path = url.partition("://")[2] if "://" in url else url
        return cls(path.removeprefix("localhost") if path.startswith("localhost/") else path)

    @property
    def url(self) -> str:
        return f"file://{self._root.path}"

    def info(self, path: str) -> FileInfo:
        full = self._root.full(check_path(path))
        with answers(full), self._root.entry(path) as entry:
            return file_info(path, entry.stat()) or refuse_special(full)

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        found = self.info(path)
        if not found.is_dir:
            return iter((found,))
        return self._below(path, recursive, frozenset())

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        full = self._root.full(check_path(path))
        if start < 0:
            raise ValueError(f"{full}: start {start} is negative")
        with answers(full):
            fd = self._open(path)
            try:
                return _read_open_file(fd, full, start, buffer, version=version, progress=progress)
            finally:
                os.close(fd)

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        with self.open_writer(path) as writer:
            writer.write(data)
            return writer.commit()

    def open_writer(self, path: str, *, append: bool = False) -> LocalWriter:
        writer = self._open_writer(path, go_on=False)
        if append:
            writer.copy_existing()
        return writer

    def unfinished(self, directory: str) -> UnfinishedFiles:
        check_path(directory)
        return UnfinishedFiles(self._root.full(directory), lambda path: self._open_writer(path, go_on=True))

    def _open_writer(self, path: str, *, go_on: bool) -> LocalWriter:
        full = self._root.full(check_path(path))
        with answers(full):
            made = self._root.make_directories(path.rpartition("/")[0])
            try:
                with self._root.entry(path) as entry:
                    if entry.is_directory():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), full)
                    return LocalWriter(
                        path, full, entry, on_abort=lambda: self._remove_empty(made), go_on=go_on
                    )
            except OSError:
                self._remove_empty(made)
                raise

    def delete(self, path: str) -> None:
        full = self._root.full(check_path(path))
        if not path:
            raise PermissionError(errno.EPERM, "the root of a store is not deleted", full)
        with answers(full), self._root.entry(path, follow=False) as entry:
            if entry.is_directory():
                os.rmdir(entry.name, dir_fd=entry.directory)
            else:
                os.unlink(entry.name, dir_fd=entry.directory)

    def make_directory(self, path: str) -> None:
        with answers(self._root.full(check_path(path))):
            if not path:
                os.makedirs(self._root.path, exist_ok=True)
            self._root.make_directories(path)

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        return f"<LocalStore {self._root.path}>"

    def _open(self, path: str) -> int:
        with self._root.entry(path) as entry:
            mode = entry.stat().st_mode  # before open: opening a device can do things
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                refuse_special(self._root.full(path))
            return entry.open(_READ)

    def _remove_empty(self, made: _Names) -> None:
        for path in reversed(made):
            with suppress(OSError):  # somebody uses it by now
                self.delete(path)

    def _below(self, path: str, recursive: bool, above: frozenset[_Identity]) -> Iterator[FileInfo]:
        """`above` are the directories that led here: a link back to one of them is not walked again."""
        full = self._root.full(path)
        with answers(full):
            identity, names = self._scan(path)
        above |= {identity}
        while batch := [*islice(names, _STAT_BATCH)]:
            with answers(full):
                entries = self._stat_batch(path, batch)
            for info, where in entries:
                if not (recursive and info.is_dir):
                    yield info
                elif where not in above:
                    with suppress(FileNotFoundError):  # deleted since it was listed
                        yield from self._below(info.path, True, above)

    def _scan(self, path: str) -> tuple[_Identity, Iterator[str]]:
        """A directory's identity and its names in order: names only, so that a million of them stay small."""
        prefix = path + "/" if path else ""
        with self._root.entry(path) as entry:
            fd = entry.open(os.O_RDONLY | os.O_DIRECTORY)
        try:
            status = os.fstat(fd)
            with os.scandir(fd) as children:
                keys = sorted(
                    listing_key(child.name, self._leads_to_directory(prefix + child.name, child))
                    for child in children
                    if not TEMPORARY.fullmatch(child.name)
                )
        finally:
            os.close(fd)
        return (status.st_dev, status.st_ino), (key.removesuffix("/") for key in keys)

    def _leads_to_directory(self, path: str, child: os.DirEntry[str]) -> bool:
        if not child.is_symlink():
            return child.is_dir(follow_symlinks=False)
        with suppress(OSError):  # leads nowhere, or out: `_stat_batch` leaves it out
            return self.info(path).is_dir
        return False

    def _stat_batch(self, path: str, names: _Names) -> _Found:
        """These children, but not what is gone meanwhile, special, or a link that leads nowhere or out."""
        prefix = path + "/" if path else ""
        found: _Found = []
        with self._root.entry(path) as entry:
            fd = entry.open(os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names:
                status = self._stat_child(fd, prefix + name)
                if status is None:
                    continue
                if (info := file_info(prefix + name, status)) is not None:
                    found.append((info, (status.st_dev, status.st_ino)))
        finally:
            os.close(fd)
        return found

    def _stat_child(self, directory: int, path: str) -> os.stat_result | None:
        with suppress(FileNotFoundError):
            status = os.stat(path.rpartition("/")[2], dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                return status
            with suppress(PermissionError, NotADirectoryError), self._root.entry(path) as target:
                return target.stat()
        return None


def _read_open_file(
    fd: int, full: str, start: int, buffer: memoryview, *, version: str | None, progress: Progress | None
) -> int:
    before = os.fstat(fd)
    found = version_of(before)
    if not stat.S_ISREG(before.st_mode):
        refuse_special(full)
    if version and version != found:
        raise StaleVersion(f"{full}: version {version} wanted, {found} found")
    length = max(0, min(len(buffer), before.st_size - start))
    step = PROGRESS_BYTES if progress is not None else length
    done = 0
    while done < length:
        with buffer[done : min(done + step, length)] as piece:
            count = os.preadv(fd, [piece], start + done)
        if changed(before, os.fstat(fd)):  # before anybody is told that these bytes are valid
            raise StaleVersion(f"{full}: version {found} changed while it was read")
        if not count:
            raise UnderStoreError(errno.EIO, f"ends at {start + done} of {before.st_size} bytes", full)
        done += count
        if progress is not None:
            progress(done)
    if progress is not None and not length:
        progress(0)
    return done
