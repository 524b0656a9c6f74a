"""One writer at a time, on this machine's disk."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from datetime import datetime, timezone

NAME = "writer.lock"


class WriterLock:
    """Held from its construction to `release`, or to the end of the process.

    An flock, so that no crash leaves it behind; it also holds on NFS since Linux 2.6.12 (flock(2)). The
    file stays: removing it would let two writers hold two files of one name.
    """

    def __init__(self, directory: str, what: object) -> None:
        """Raises BlockingIOError that says who has it."""
        self._file = os.open(f"{directory}/{NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._file, 200, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise BlockingIOError(
                errno.EWOULDBLOCK, f"already open for writing, by {owner or 'somebody'}: {what}"
            ) from None
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    def release(self) -> None:
        """For good, also where a forked child still has the descriptor. Idempotent."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self.after_fork()

    def after_fork(self) -> None:
        """In the child: the parent's end shall end the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
