"""Plain sockets of one server behind a single descriptor of the event loop.

An event loop needs 3 to 6 us to wake up and call back for each socket, as much as a small answer. So all
sockets are in one epoll set, which the loop watches: it wakes up once for all that are readable at a
moment, and those are read in one loop here. What they are answered is sent after all of them were read:
to wake up a reader that sleeps on this host costs as much as to send it 4 KiB, and one that gets several
answers at once is woken up once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

_AT_ONCE = 64  # sockets between two looks at which are readable: about a millisecond of small answers
_ROUNDS = 4  # such looks before the loop's other work has its turn
_ACCEPTS = 64
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_S = 1.0


class ReadySockets:
    """Event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._in_round = False
        self._deferred: list[Callable[[], None]] = []
        loop.add_reader(self._epoll.fileno(), self._serve)

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Calls `readable`, which must not raise, whenever there is something to read; until `unwatch`."""
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = readable

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed. Does nothing for one that is not watched."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def defer(self, work: Callable[[], None]) -> None:
        """Calls `work`, which must not raise, when all that is readable at this moment has been read."""
        if self._in_round:
            self._deferred.append(work)
        else:
            self._loop.call_soon(work)

    def close(self) -> None:
        """Idempotent. The sockets are their owners' to close."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._readers.clear()
            self._epoll.close()

    def _serve(self) -> None:
        poll, reader_of = self._epoll.poll, self._readers.get
        for _ in range(_ROUNDS):
            ready = poll(0, _AT_ONCE)
            self._in_round = True
            for fd, _ in ready:
                readable = reader_of(fd)
                if readable is not None:  # one before it in this round may have ended it
                    readable()
            self._in_round = False
            if self._deferred:
                deferred, self._deferred = self._deferred, []
                for work in deferred:
                    work()
            if len(ready) < 2 or self._epoll.closed:
                return


class Listener:
    """Accepts connections of one listening socket, which it owns."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ready: ReadySockets,
        listening: socket.socket,
        accepted: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._ready = ready
        self._socket = listening
        self._accepted = accepted
        self._closed = False
        listening.setblocking(False)
        self._watch()

    def _watch(self) -> None:
        if not self._closed:
            self._ready.watch(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                peer, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                log.error("%s: accept: %s", self._socket, exc)
                self._ready.unwatch(self._socket.fileno())
                if exc.errno in _NO_ROOM:  # descriptors come back; until then the kernel's queue waits
                    self._loop.call_later(_ACCEPT_PAUSE_S, self._watch)
                return
            self._accepted(peer)

    def close(self) -> None:
        """Idempotent. What was accepted stays."""
        if not self._closed:
            self._closed = True
            self._ready.unwatch(self._socket.fileno())
            self._socket.close()
