"""A plain socket in the place of an asyncio transport; `ReadySockets` says when there is something."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from kara_worker.http.ready_sockets import ReadySockets

log = logging.getLogger(__name__)

_HEAD_BYTES = 8 << 10  # one receive; heads are far smaller
_BODY_BYTES = 256 << 10  # after one that was full
_FAREWELL_BYTES = 1 << 20


class SocketTransport:
    """What `Connection` needs of a transport. Event loop only; who writes owns the socket and closes it."""

    __slots__ = ("_closing", "_count", "_fd", "_loop", "_protocol", "_ready", "_received", "_recv", "socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ready: ReadySockets,
        sock: socket.socket,
        protocol: asyncio.Protocol,
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._loop = loop
        self._ready = ready
        self._protocol = protocol
        self._received = protocol.data_received
        self._recv = sock.recv
        self._fd = sock.fileno()
        self._count = _HEAD_BYTES
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default

    def pause_reading(self) -> None:
        self._ready.unwatch(self._fd)

    def resume_reading(self) -> None:
        if not self._closing:
            self._ready.watch(self._fd, self._readable)

    def close(self) -> None:
        """What the peer has sent is taken first: a socket closed over unread bytes is reset, and the last
        answer may be lost with it."""
        with suppress(OSError):
            left = _FAREWELL_BYTES
            while not self._closing and left > 0 and (data := self._recv(_BODY_BYTES)):
                left -= len(data)
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def _readable(self) -> None:
        try:
            data = self._recv(self._count)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._end(exc)
            return
        if not data:
            self._end(None)
            return
        if len(data) >= _HEAD_BYTES:
            self._count = _BODY_BYTES
        elif self._count != _HEAD_BYTES:
            self._count = _HEAD_BYTES
        try:
            self._received(data)
        except Exception as exc:  # the top of a connection
            log.exception("a connection failed, and is closed")
            self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self._ready.unwatch(self._fd)
            self._loop.call_soon(self._protocol.connection_lost, exc)
