"""Names below one directory of this machine, resolved so that nothing leads out of it.

Every segment is opened relative to the descriptor of the one before, never following a symbolic
link; links are read and walked by us, and ".." in a link pops a descriptor that we hold. So a
directory that is swapped for a link while we walk is a link that we judge, not one that the kernel
follows (the class of CVE-2020-17519; openat2(RESOLVE_BENEATH) does the same in the kernel, but
Python has no call for it).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

MAX_LINKS = 40  # the kernel's own limit, path_resolution(7)
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", 0)


class Entry(NamedTuple):
    """A name in an open directory; the name itself is no symbolic link when it was asked to be followed."""

    directory: int  # descriptor, for `dir_fd`; it cannot be read from, only resolved against
    name: str  # one segment, or "." for the directory itself

    def stat(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def open(self, flags: int, mode: int = 0o666) -> int:
        return os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.directory)

    def is_directory(self) -> bool:
        try:
            return stat.S_ISDIR(self.stat().st_mode)
        except FileNotFoundError:
            return False

    def open_parent(self) -> int:
        """The directory itself, as a descriptor that can be synced and used after the walk is over."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory)


class RootDirectory:
    """Links inside the root work, also absolute ones; one that leaves it is a PermissionError."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def full(self, path: str) -> str:
        return f"{self.path}/{path}" if path else self.path

    @contextmanager
    def entry(self, path: str, *, follow: bool = True) -> Iterator[Entry]:
        """Where `path` (checked by `check_path`) is, whether or not something is there.

        With `follow` a link at the end is resolved, without it the entry is the link itself.
        """
        walk = _Walk(self, path)
        try:
            name = walk.run(follow)
            yield Entry(walk.directories[-1], name)
        finally:
            walk.close()

    def make_directories(self, path: str) -> list[str]:
        """Makes `path` and its parents below the root; the ones that were not there, shortest first."""
        made = []
        segments = path.split("/") if path else []
        for count in range(1, len(segments) + 1):
            name = "/".join(segments[:count])
            with self.entry(name) as entry:
                try:
                    os.mkdir(entry.name, dir_fd=entry.directory)
                    made.append(name)
                except FileExistsError:
                    if not stat.S_ISDIR(entry.stat().st_mode):
                        raise NotADirectoryError(
                            errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.full(name)
                        ) from None
        return made

    def below(self, target: str) -> str | None:
        """The part of an absolute path that is below the root, or None."""
        for root in (self.path, os.path.realpath(self.path)):
            if target == root:
                return ""
            if target.startswith(root.rstrip("/") + "/"):
                return target[len(root.rstrip("/")) + 1 :]
        return None


class _Walk:
    """One resolution: the descriptors from the root down to where it stands."""

    def __init__(self, root: RootDirectory, path: str) -> None:
        self._root = root
        self._path = path
        self._pending = path.split("/")[::-1]  # segments still to walk, the next one last
        self._links = 0
        self.directories = [os.open(root.path, _DIRECTORY & ~os.O_NOFOLLOW)]

    def run(self, follow: bool) -> str:
        """Walks to the directory of the last segment (`directories[-1]`) and returns that segment."""
        name = "."
        while self._pending:
            name = self._pending.pop()
            if name in ("", "."):  # the root, or a link's own spelling
                name = "."
            elif name == "..":
                self._up()
                name = "."
            elif not self._pending:
                if not follow or not self._expand(name):
                    return name
            elif not self._down(name):
                self._expand(name, must=True)
        return name

    def close(self) -> None:
        while self.directories:
            os.close(self.directories.pop())

    def _up(self) -> None:
        if len(self.directories) == 1:
            self._refuse()
        os.close(self.directories.pop())

    def _down(self, name: str) -> bool:
        try:
            self.directories.append(os.open(name, _DIRECTORY, dir_fd=self.directories[-1]))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):  # a link, or a file
                return False
            raise
        return True

    def _expand(self, name: str, *, must: bool = False) -> bool:
        """Puts a link's target in front of what is pending; False if `name` is no link."""
        try:
            target = os.readlink(name, dir_fd=self.directories[-1])
        except OSError as error:
            if not must and error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            if error.errno == errno.EINVAL:
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._root.full(self._path)
                ) from None
            raise
        self._links += 1
        if self._links > MAX_LINKS:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ELOOP), self._root.full(self._path))
        if target.startswith("/"):
            below = self._root.below(target)
            if below is None:
                self._refuse()
            else:
                target = below
                while len(self.directories) > 1:
                    os.close(self.directories.pop())
        self._pending.extend(target.split("/")[::-1])
        return True

    def _refuse(self) -> None:
        raise PermissionError(
            errno.EACCES, "a symbolic link leads out of the store's root", self._root.full(self._path)
        )
