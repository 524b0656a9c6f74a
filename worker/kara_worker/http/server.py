"""The few lines of HTTP/1.1 that a data port needs: parse, keep alive, dispatch, bound everything.

A framework costs more per request than the request itself (measured: aiohttp 186 us, granian 64 us,
this about 10 us). An application may answer a request at once, without a task (`try_fast`); all
others run as one task for each connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from kara_cache.errors import FormatError
from kara_cache.wire import MAX_HEAD_BYTES
from kara_worker.http.body import BodyDecoder
from kara_worker.http.output import Item, Output, SocketOutput, TransportOutput
from kara_worker.http.ready_sockets import Listener, ReadySockets
from kara_worker.http.request import REASONS, Request, body_decoder
from kara_worker.http.socket_transport import SocketTransport

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 30.0  # a request head must be complete in this time (slowloris)
STALL_TIMEOUT_S = 60.0  # a peer that takes no byte for so long is dropped
IDLE_TIMEOUT_S = 600.0  # keep-alive without a request
_SWEEP_S = 5.0
_BACKLOG = 1024
_BODY_HIGH = 1 << 20  # unread body bytes after which the socket is no longer read


class Application(Protocol):
    """What serves requests. Both methods run in the event loop."""

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        """Answers a bodiless request at once through `connection.send`; False leaves it to `handle`."""
        ...

    async def handle(self, request: Request) -> None:
        """Answers the request; an exception becomes an error response if none was started."""
        ...


class Connection(asyncio.Protocol):
    """One client's connection: at most one request at a time, later ones wait in the buffer."""

    def __init__(self, application: Application, server: HttpServer) -> None:
        self._application = application
        self._try_fast = application.try_fast
        self._server = server
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._body: BodyDecoder | None = None
        self._body_parts: deque[bytes] = deque()
        self._body_size = 0
        self._body_event = asyncio.Event()
        self._reading_paused = False
        self._lost = False
        self.deferred = False  # set by who queued an answer that `flush` is to send
        self.since = time.monotonic()  # when it became idle, or the current head began to arrive
        self.local = False  # a unix socket whose peer has our uid
        self.close_after = False

    def connection_made(self, transport: Any) -> None:
        """`transport` is a SocketTransport, or asyncio's (or uvloop's, one in all but name) over TLS."""
        self.transport = transport
        sock = transport.get_extra_info("socket")
        self.local = sock.family == socket.AF_UNIX
        if self.local and not self._server.trusts_peer(sock):
            transport.abort()
        plain = isinstance(transport, SocketTransport)
        output = SocketOutput if plain else TransportOutput
        self.output: Output = output(self._server.loop, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._server.connections.discard(self)
        self.output.close()
        self._body_event.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        if isinstance(self.output, TransportOutput):
            self.output.paused = True

    def resume_writing(self) -> None:
        self.output.resume()

    def data_received(self, data: bytes) -> None:
        if self._task is None and not self._buffer and not self.deferred:
            # nearly always: one request without a body, whole
            end = data.find(b"\r\n\r\n")
            if end == len(data) - 4:
                self.since = time.monotonic()
                self._answer(data[:end])
                return
        if self._body is not None:
            self._feed_body(data)
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._task is None and not self.deferred:
            self._advance()
        elif len(self._buffer) > MAX_HEAD_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def send(self, *items: Item) -> bool:
        """Queues and sends; True when all is with the kernel (see Output.send)."""
        return self.output.send(*items)

    def defer(self, flush: Callable[[], None]) -> None:
        """Calls `flush` when what is readable on all connections has been read."""
        self._server.ready.defer(flush)

    def flush(self) -> None:
        """Sends what `output.put` queued while `deferred`; then the next request has its turn."""
        self.deferred = False
        if not self.output.flush():
            self._start_task(self._wait_output())
        elif self._buffer:
            self._server.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._task is None and not self.deferred:
            self._advance()

    async def drain(self) -> None:
        await self.output.drain()

    @property
    def idle(self) -> bool:
        return self._task is None and not self.output.pending

    def _advance(self) -> None:
        while self._buffer and not self._lost:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    self._refuse(431, f"request head of more than {MAX_HEAD_BYTES} bytes")
                return
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            self.since = time.monotonic()
            if not self._answer(head):
                return

    def _answer(self, head: bytes) -> bool:
        """Whether the answer is out, and the next request's turn."""
        if not self._try_fast(self, head):
            self._start_request(head)
            return False
        if self.deferred:
            return False
        if self.output.pending:
            # responses must not overtake one another: go on when this one is out
            self._start_task(self._wait_output())
            return False
        return True

    def _start_request(self, head: bytes) -> None:
        try:
            request = Request(self, head)
            self._body = body_decoder(request)
        except (FormatError, UnicodeDecodeError) as exc:
            self._refuse(400, str(exc))
            return
        if self._body is not None:
            data, self._buffer = self._buffer, b""
            self._body_event.clear()
            if not self._feed_body(data):
                return
        self._start_task(self._serve(request))

    def _start_task(self, work: Any) -> None:
        self._task = self._server.loop.create_task(work)

    async def _wait_output(self) -> None:
        try:
            await self.drain()
        except ConnectionError:
            return
        finally:
            self._task = None
        self._next()

    async def _serve(self, request: Request) -> None:
        failed = False
        try:
            await self._application.handle(request)
        except ConnectionError:
            failed = True
        except Exception as exc:  # noqa: BLE001 - a task's top: log, answer if possible, go on
            failed = request.started
            if failed:
                log.warning("%s %s broke off: %s", request.method, request.path, exc)
            else:
                failed = not await self._answer_error(request, exc)
        finally:
            self._task = None
        body_left = self._body is not None and not self._body.done
        self._end_body()
        if failed or body_left or not request.keep_alive or self.close_after:
            self._close(abort=failed)
            return
        self._next()

    async def _answer_error(self, request: Request, exc: Exception) -> bool:
        try:
            await request.respond_error(exc)
        except ConnectionError:
            return False
        return True

    def _next(self) -> None:
        self.since = time.monotonic()
        if self._reading_paused and not self._lost:
            self._reading_paused = False
            self.transport.resume_reading()
        self._advance()

    def _close(self, *, abort: bool) -> None:
        if abort:
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": "format", "message": message}).encode()
        self.send(
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n\r\n".encode(),
            body,
        )
        self._buffer = b""
        self.transport.close()

    def _feed_body(self, data: bytes) -> bool:
        assert self._body is not None
        if self._body.done:
            self._buffer += data
            return True
        try:
            parts = self._body.feed(data)
        except FormatError as exc:
            self._refuse(400, str(exc))
            self._body_event.set()
            self.transport.abort()
            return False
        for part in parts:
            self._body_parts.append(part)
            self._body_size += len(part)
        if self._body.done:
            self._buffer += self._body.rest
        if self._body_size > _BODY_HIGH and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        self._body_event.set()
        return True

    async def next_body(self) -> bytes | None:
        """The next part of the current request's body, None at its end."""
        while not self._body_parts:
            if self._body is None or self._body.done:
                return None
            if self._lost:
                raise ConnectionResetError("the peer went away inside a request body")
            self._body_event.clear()
            await self._body_event.wait()
        part = self._body_parts.popleft()
        self._body_size -= len(part)
        self.since = time.monotonic()
        if self._reading_paused and self._body_size < _BODY_HIGH // 2 and not self._lost:
            self._reading_paused = False
            self.transport.resume_reading()
        return part

    def _end_body(self) -> None:
        self._body = None
        self._body_parts.clear()
        self._body_size = 0

    def expired(self, now: float) -> bool:
        """Whether a timeout says that this connection is over."""
        if self.output.pending:
            return now - self.output.last_progress > STALL_TIMEOUT_S
        if self._task is not None:
            return self._body is not None and not self._body.done and now - self.since > STALL_TIMEOUT_S
        return now - self.since > (HEAD_TIMEOUT_S if self._buffer else IDLE_TIMEOUT_S)


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
