"""The directory that a save reads: every file below it, links followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from kara_cache.storage.objects.object_tree import PathParts
from kara_cache.storage.objects.version_file import PERMISSIONS, check_parts
from kara_cache.storage.objects.work_directory import WORK_DIRECTORY
from kara_cache.ufs.local_file import refuse_special

_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class SourceFile:
    path: PathParts
    full: str
    size: int  # bytes, when it was found
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SourceTree:
    files: tuple[SourceFile, ...]  # by path
    empty_directories: tuple[PathParts, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def source_tree(path: str | os.PathLike[str]) -> SourceTree:
    """Everything that a save has to read, or the reason why it cannot be saved as a whole.

    Links are followed, as the published package does. The hidden directory of an unfinished load is
    left out.

    Raises:
        FileNotFoundError, NotADirectoryError: `path` is no directory, or a link leads nowhere.
        OSError (ELOOP): links lead in a circle.
        PermissionError: not readable, or neither a regular file nor a directory (a FIFO, a socket).
        FormatError: a name that no version file may have.
    """
    root = os.path.abspath(os.fsdecode(path))
    files: list[SourceFile] = []
    empty: list[PathParts] = []
    status = os.stat(root)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
    for directory, found, has_children in _walk(root, (), ((status.st_dev, status.st_ino),)):
        files += found
        if directory and not has_children:
            empty.append(directory)
    return SourceTree(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(empty)))


def _walk(
    full: str, path: PathParts, above: tuple[_Identity, ...]
) -> Iterator[tuple[PathParts, list[SourceFile], bool]]:
    """`above` are the directories that led here, this one included."""
    files: list[SourceFile] = []
    below: list[tuple[str, PathParts, _Identity]] = []
    for name in sorted(os.listdir(full)):
        child = os.path.join(full, name)
        if not path and name == WORK_DIRECTORY and not os.path.islink(child):
            continue
        parts = check_parts((*path, name), full)
        status = _follow(child)
        if stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                _refuse_loop(child)
            below.append((child, parts, identity))
        elif stat.S_ISREG(status.st_mode):
            mode = status.st_mode & PERMISSIONS
            files.append(SourceFile(parts, child, status.st_size, mode, status.st_mtime_ns))
        else:
            refuse_special(child)
    yield path, files, bool(files or below)
    for child, parts, identity in below:
        yield from _walk(child, parts, (*above, identity))


def _follow(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            _refuse_loop(path)
        if exc.errno == errno.ENOENT and os.path.islink(path):
            what = f"a symbolic link leads nowhere, to {os.readlink(path)!r}"
            raise FileNotFoundError(errno.ENOENT, what, path) from exc
        raise


def _refuse_loop(path: str) -> NoReturn:
    raise OSError(errno.ELOOP, "a symbolic link leads in a circle", path)
