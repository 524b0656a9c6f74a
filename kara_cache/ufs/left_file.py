"""A hidden file that an earlier writer left, written once more: only what differs reaches the disk."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress

from kara_cache.ufs.root_directory import Entry


class LeftFile:
    """Bytes that are there already are read and compared. Where a machine lost power some may be wrong."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self._left_bytes = os.fstat(descriptor).st_size

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._check_open()
        with memoryview(data) as whole, whole.cast("B") as view:
            if not self._has(view):
                done = 0
                while done < len(view):  # pwrite writes less than it is given where the disk fills up
                    done += os.pwrite(self._descriptor, view[done:], self._position + done)
            self._position += len(view)
            return len(view)

    def flush(self) -> None:
        """Cuts off what an earlier writer had behind the end."""
        self._check_open()
        os.ftruncate(self._descriptor, self._position)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _has(self, data: memoryview) -> bool:
        if self._position + len(data) > self._left_bytes:
            return False
        there = bytearray(len(data))
        return os.preadv(self._descriptor, [there], self._position) == len(data) and there == data

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("write to a file that is closed")


def open_left(entry: Entry) -> LeftFile | None:
    """The file, made if need be and locked; None where somebody else has it, or locks do not work."""
    try:
        descriptor = entry.open(os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
    except OSError:  # of somebody else, or no file at all
        return None
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1
        if ours and os.path.samestat(found, entry.stat()):  # else it was committed before it was locked
            return LeftFile(descriptor)
    os.close(descriptor)
    return None
