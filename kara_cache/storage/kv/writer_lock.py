"""One writer at a time, over threads and processes, with a limit to the wait and a name for who holds it.

LMDB has a lock of its own, but waits for it without limit, and gives it up while a full map grows.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02


class WriterLock:
    """Not reentrant: a thread that holds it and asks again gets a RuntimeError, not a deadlock.

    A lock belongs to the process that made it; a forked child makes another one.
    """

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._threads = threading.Lock()  # flock does not tell threads of one process apart
        self._owner: int | None = None
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = True) -> None:
        """Raises TimeoutError naming the process that writes, RuntimeError if this thread does."""
        if self._owner == threading.get_ident():
            raise RuntimeError(f"{self._path.parent}: this thread is inside a write transaction already")
        timeout_s = self._timeout_s if wait else 0
        deadline = time.monotonic() + timeout_s
        if not self._threads.acquire(timeout=timeout_s):
            raise TimeoutError(self._waited("another thread of this process"))
        try:
            self._acquire_file(deadline)
        except BaseException:
            self._threads.release()
            raise
        self._owner = threading.get_ident()

    @property
    def is_held(self) -> bool:
        """By any thread of this process."""
        return self._owner is not None

    def release(self) -> None:
        self._owner = None
        assert self._descriptor is not None
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _acquire_file(self, deadline: float) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(self._waited(f"process {self._holder()}")) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        os.pwrite(self._descriptor, b"%-20d" % os.getpid(), 0)  # for the message of whoever waits

    def _holder(self) -> str:
        assert self._descriptor is not None
        return os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"

    def _waited(self, who: str) -> str:
        return f"{self._path.parent}: {who} has been writing for more than {self._timeout_s:g} s"
