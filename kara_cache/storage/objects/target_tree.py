"""The directory that a load writes to; nothing outside of it is touched, whatever links are in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from kara_cache.storage.objects.object_tree import FileEntry, ObjectTree, PathParts
from kara_cache.storage.objects.work_directory import WORK_DIRECTORY, WorkDirectory
from kara_cache.ufs.root_directory import RootDirectory

_REGULAR = os.O_RDONLY | os.O_NONBLOCK  # a FIFO in the place of a file must not hang us


class TargetTree:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path` itself may be a link to the directory that is meant; it need not exist."""
        self.path = os.path.abspath(os.fsdecode(path))
        self._root = RootDirectory(self.path)

    def check(self, tree: ObjectTree, *, clear: bool) -> None:
        """Looks, without writing, whether every path can be placed.

        Raises PermissionError for a link in the place of a directory, NotADirectoryError and
        IsADirectoryError for what is in the way and may not be deleted (`clear`).
        """
        if not os.path.lexists(self.path):
            return
        if not os.path.isdir(self.path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
        for directory in sorted(tree.directories, key=len):
            self._check_directory(directory, clear=clear)
        if clear:
            return
        for file in tree.files:
            status = self._status(file.path)
            if status is not None and stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(
                    errno.EISDIR, "a directory is where the file belongs", self._full(file.path)
                )

    def make_directories(self, tree: ObjectTree, *, clear: bool) -> None:
        os.makedirs(self.path, exist_ok=True)
        if clear:
            self._clear_the_way(tree)
        for directory in sorted(tree.directories):
            self._root.make_directories("/".join(directory))

    def open_existing(self, file: FileEntry) -> int | None:
        """A descriptor of the regular file of this size that is there already, or None."""
        try:
            with self._root.entry(file.name, follow=False) as entry:
                descriptor = entry.open(_REGULAR)
        except OSError:  # nothing there, a link, not readable: a new file is renamed over it
            return None
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size == file.blob.size:
            return descriptor
        os.close(descriptor)
        return None

    def allocated_bytes(self, file: FileEntry) -> int:
        """What replacing the file gives back."""
        status = self._status(file.path)
        return 512 * status.st_blocks if status is not None and status.st_nlink == 1 else 0

    def place(self, work: WorkDirectory, name: str, file: FileEntry) -> None:
        """A finished file of the work directory becomes this one, whole or not at all."""
        with self._root.entry(file.name, follow=False) as entry:
            os.rename(name, entry.name, src_dir_fd=work.descriptor, dst_dir_fd=entry.directory)

    def delete_unrelated(self, tree: ObjectTree) -> int:
        """Deletes every file, link and directory that the tree does not have; returns how many."""
        files, directories = {file.path for file in tree.files}, tree.directories
        deleted = 0
        for parts, subdirectories, names, descriptor in self._walk():
            for name in names:
                if (*parts, name) not in files:
                    os.unlink(name, dir_fd=descriptor)
                    deleted += 1
            for name in subdirectories:
                if (*parts, name) not in directories and (*parts, name) != (WORK_DIRECTORY,):
                    _remove(name, descriptor)
                    deleted += 1
        return deleted

    def _walk(self) -> Iterable[tuple[PathParts, list[str], list[str], int]]:
        """Bottom up, not following links."""
        for path, subdirectories, names, descriptor in os.fwalk(self.path, topdown=False):
            relative = os.path.relpath(path, self.path)
            parts = () if relative == "." else tuple(relative.split("/"))
            if parts[:1] != (WORK_DIRECTORY,):
                yield parts, subdirectories, names, descriptor

    def _check_directory(self, path: PathParts, *, clear: bool) -> None:
        status = self._status(path)
        if status is None or stat.S_ISDIR(status.st_mode):
            return
        if stat.S_ISLNK(status.st_mode):
            raise PermissionError(
                errno.EACCES, "a symbolic link is where a directory belongs", self._full(path)
            )
        if not clear:
            raise NotADirectoryError(errno.ENOTDIR, "a file is where a directory belongs", self._full(path))

    def _clear_the_way(self, tree: ObjectTree) -> None:
        """Deletes files that are where directories belong, and the other way round."""
        for directory in sorted(tree.directories, key=len):
            status = self._status(directory)
            if status is not None and not stat.S_ISDIR(status.st_mode):
                with self._root.entry("/".join(directory), follow=False) as entry:
                    os.unlink(entry.name, dir_fd=entry.directory)
        for file in tree.files:
            status = self._status(file.path)
            if status is not None and stat.S_ISDIR(status.st_mode):
                with self._root.entry(file.name, follow=False) as entry:
                    _remove_tree(entry.name, entry.directory)

    def _status(self, path: PathParts) -> os.stat_result | None:
        try:
            with self._root.entry("/".join(path), follow=False) as entry:
                return entry.stat()
        except (FileNotFoundError, NotADirectoryError):  # the latter: a file above it, found on its own
            return None

    def _full(self, path: PathParts) -> str:
        return os.path.join(self.path, *path)


def stamp(descriptor: int, file: FileEntry) -> None:
    """Mode and time as they were when the file was saved, where the version says."""
    if file.mode is not None:
        os.fchmod(descriptor, file.mode)
    if file.mtime_ns is not None:
        os.utime(descriptor, ns=(file.mtime_ns, file.mtime_ns))


def _remove(name: str, directory: int) -> None:
    """An empty directory, or a link to one."""
    try:
        os.rmdir(name, dir_fd=directory)
    except NotADirectoryError:
        os.unlink(name, dir_fd=directory)


def _remove_tree(name: str, directory: int) -> None:
    # A link to a directory is among the names of directories.
    for _, subdirectories, names, descriptor in os.fwalk(name, topdown=False, dir_fd=directory):
        for child in names:
            with suppress(FileNotFoundError):
                os.unlink(child, dir_fd=descriptor)
        for child in subdirectories:
            _remove(child, descriptor)
    os.rmdir(name, dir_fd=directory)
