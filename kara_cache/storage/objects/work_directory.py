"""Where a load keeps what is not finished: a hidden directory inside its target."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import suppress
from types import TracebackType

WORK_DIRECTORY = ".kara-load"
_LOCK = "lock"
_OURS = re.compile(r"[0-9a-f]{32}_[0-9a-f]{40}\.(part|done|copy-\d+)")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class WorkDirectory:
    """Made and locked at construction; a second load of the same target is refused, not mixed in.

    It is inside the target because only there a rename is sure to be on the same file system. What a
    load that was killed left in it is named by content, so any later load may go on with it.
    `remove` deletes files with names of ours and nothing else.
    """

    def __init__(self, target: str) -> None:
        self.path = os.path.join(target, WORK_DIRECTORY)
        while True:
            with suppress(FileExistsError):
                os.mkdir(self.path, 0o700)
            try:
                self.descriptor = os.open(self.path, _DIRECTORY)
            except FileNotFoundError:  # removed since, by a load that has ended
                continue
            try:
                lock = self._take_lock()
            except BaseException:
                os.close(self.descriptor)
                raise
            if lock is not None:
                self._lock = lock
                return
            os.close(self.descriptor)

    def open(self, name: str, flags: int) -> int:
        """A file in it; made with the permissions that the user's umask gives to files."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def allocated_bytes(self) -> int:
        """On disk, of what earlier loads left."""
        blocks = 0
        for name in os.listdir(self.descriptor):
            with suppress(FileNotFoundError):
                blocks += os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_blocks
        return 512 * blocks  # stat(2)

    def remove(self) -> None:
        """At the end of a load that succeeded."""
        for name in os.listdir(self.descriptor):
            if _OURS.fullmatch(name):
                self.unlink(name)
        self.unlink(_LOCK)
        with suppress(OSError):  # somebody keeps things here; a load that waits for the lock makes it anew
            os.rmdir(self.path)

    def __enter__(self) -> WorkDirectory:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._lock)
        os.close(self.descriptor)

    def _take_lock(self) -> int | None:
        """None where the directory or the lock's file was removed meanwhile, by a load that has ended."""
        try:
            lock = self.open(_LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise BlockingIOError(
                errno.EAGAIN, "another load is writing to this directory", self.path
            ) from None
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)
        return None
