"""Threads that wait until a disk has delivered what a connection asked for.

Bytes go from their file straight to the socket, as far as that takes them at once, and else to nowhere
(`sendfile` to /dev/null): the kernel reads all of them, in advance and in large pieces, copies nothing, and
the thread takes the interpreter once. Reading a byte here and there took it for each, and that cost more
than the page itself: 16 threads and the loop wanted it at once. What the socket did not take, the loop sends.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic

from kara_worker.pages.page_store import StoredPage

MAX_THREADS = 16  # requests that a disk has at once; beyond, an SSD is not faster and Python is slower
_PROBED_BYTES = 256 << 10  # the kernel reads in advance at least that much at a time
_CLOSE_S = 1.0
_NULL_DEVICE = os.makedev(1, 3)
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EBADF)


Done = Callable[[int, OSError | None], None]
"""Told how many bytes the socket took, and what the disk or the socket failed with."""

_Wait = tuple[StoredPage, int, int, Done, int]
"""A page, bytes from and how many of its descriptor, who is told, and a socket or -1."""


class DiskWaits:
    """Event loop only. A thread begins when it is needed for the first time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[_Wait | None] = SimpleQueue()
        self._delivered: deque[tuple[Done, int, OSError | None]] = deque()
        self._told = False  # the loop is about to look at what was delivered
        self._waiting = 0
        self._threads = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<DiskWaits {self._waiting} waits, {self._threads} threads>"

    def bring(self, page: StoredPage, start: int, count: int, done: Done, into: int = -1) -> None:
        """Calls `done`, which must not raise, when these bytes of the page's descriptor are in memory or with
        the peer of `into`: a socket that does not block, and that nobody else may use or close until then."""
        self._queue.put((page, start, count, done, into))
        self._waiting += 1
        if self._waiting > self._threads and self._threads < MAX_THREADS and not self._closed:
            self._threads += 1
            threading.Thread(target=self._run, name=f"disk-wait-{self._threads}", daemon=True).start()

    def brought(self, page: StoredPage, start: int, count: int) -> asyncio.Future[None]:
        """When they are in memory, to be awaited. Raises the disk's OSError."""
        future: asyncio.Future[None] = self._loop.create_future()

        def done(_: int, error: OSError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.bring(page, start, count, done)
        return future

    async def close(self) -> None:
        """Threads end with what they are at, for which this waits a moment. Idempotent."""
        if not self._closed:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)
        until = monotonic() + _CLOSE_S
        while self._waiting and monotonic() < until:
            await asyncio.sleep(0.01)

    def _run(self) -> None:
        null = _open_null()
        try:
            while (wait := self._queue.get()) is not None:
                sent, error = 0, None
                page, start, count, done, into = wait
                try:
                    if into >= 0 and not self._closed:
                        sent = _send(into, page.fd, start, count)
                    if sent < count and not self._closed:
                        _bring(null, page.fd, start + sent, start + count)
                except OSError as exc:
                    error = exc
                self._delivered.append((done, sent, error))
                del wait, page, done, error  # nothing must stay open for a thread that is idle
                # whoever sets it False looks at all that was there before: nothing is forgotten
                if not self._told:
                    self._told = True
                    with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                        self._loop.call_soon_threadsafe(self._tell)
        finally:
            if null >= 0:
                os.close(null)

    def _tell(self) -> None:
        self._told = False
        while self._delivered:
            done, sent, error = self._delivered.popleft()
            self._waiting -= 1
            done(sent, error)


def _open_null() -> int:
    """A descriptor of the thread's own: one that another could close might be a page's file by then."""
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    found = os.fstat(null)
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL_DEVICE:
        return null
    os.close(null)
    return -1


def _send(into: int, fd: int, start: int, count: int) -> int:
    """How many bytes the peer took at once."""
    try:
        return os.sendfile(into, fd, start, count)
    except BlockingIOError:
        return 0


def _bring(null: int, fd: int, start: int, stop: int) -> None:
    """Returns when the bytes are in memory, or the file has ended before."""
    at = start
    try:
        while at < stop and (sent := os.sendfile(null, fd, at, stop - at)):
            at += sent
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise
        _probe(fd, at, stop)


def _probe(fd: int, start: int, stop: int) -> None:
    """The same where there is no null device, or a file system that cannot send."""
    os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_WILLNEED)
    for at in (*range(start, stop, _PROBED_BYTES), stop - 1):
        os.pread(fd, 1, at)
