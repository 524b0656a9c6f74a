"""The few lines of HTTP/1.1 that a data port needs: listeners, and what their connections share.

A framework costs more per request than the request itself (measured: aiohttp 186 us, granian 64 us,
this about 10 us). An application may answer a request at once, without a task (`try_fast`); all
others run as one task for each connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import struct
import time
from typing import Any

from kara_worker.http.connection import Application as Application
from kara_worker.http.connection import Connection as Connection
from kara_worker.http.disk_waits import DiskWaits
from kara_worker.http.ready_sockets import Listener, ReadySockets
from kara_worker.http.socket_transport import SocketTransport

log = logging.getLogger(__name__)

_SWEEP_S = 5.0
_BACKLOG = 1024


class HttpServer:
    """Listeners of one application; owns its connections and closes them in the end."""

    def __init__(self, application: Application, *, name: str) -> None:
        self._application = application
        self._name = name
        self._servers: list[asyncio.AbstractServer | Listener] = []
        self._sweeper: asyncio.Task[None] | None = None
        self.connections: set[Connection] = set()
        self.loop = asyncio.get_running_loop()
        self.ready = ReadySockets(self.loop)
        self.disk_waits = DiskWaits(self.loop)

    async def listen_tcp(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Starts a listener and returns its port."""
        if tls is not None:
            server = await self.loop.create_server(self._connection, host, port, ssl=tls, backlog=_BACKLOG)
            self._remember(server)
            return int(server.sockets[0].getsockname()[1])
        found = await self.loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        ports = []
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
            # inherited by every connection: a small answer must not wait for the one before it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._remember(Listener(self.loop, self.ready, listening, self._accepted))
            ports.append(int(listening.getsockname()[1]))
        return ports[0]

    async def listen_unix(self, path: str) -> None:
        """Starts a listener for processes of our own uid on this host."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(path)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._remember(Listener(self.loop, self.ready, listening, self._accepted))

    def _accepted(self, sock: socket.socket) -> None:
        connection = self._connection()
        transport = SocketTransport(self.loop, self.ready, sock, connection)
        connection.connection_made(transport)
        transport.resume_reading()

    def trusts_peer(self, sock: Any) -> bool:
        """Same uid, or root, who could read our files anyway (SO_PEERCRED: pid, uid, gid)."""
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        if uid in (os.geteuid(), 0):
            return True
        log.warning("%s: refused a unix socket peer with uid %d, expected %d", self._name, uid, os.geteuid())
        return False

    def _connection(self) -> Connection:
        return Connection(self._application, self)

    def _remember(self, server: asyncio.AbstractServer | Listener) -> None:
        self._servers.append(server)
        if self._sweeper is None:
            self._sweeper = self.loop.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in [c for c in self.connections if c.expired(now)]:
                connection.transport.abort()

    async def close(self, drain_s: float = 0.0) -> None:
        """Stops listening, lets running requests end for at most `drain_s`, then drops the rest."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        deadline = time.monotonic() + drain_s
        for connection in self.connections:
            connection.close_after = True
        while time.monotonic() < deadline and any(not c.idle for c in self.connections):
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # they close their sockets
        self.ready.close()
        await self.disk_waits.close()
