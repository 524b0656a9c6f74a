"""One client's connection: requests parsed, answered in order, kept alive, and everything bounded."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from kara_cache.errors import FormatError
from kara_cache.wire import MAX_HEAD_BYTES
from kara_worker.http.body import BodyDecoder
from kara_worker.http.disk_waits import DiskWaits
from kara_worker.http.output import Item, Output, PageSlice, SocketOutput, TransportOutput
from kara_worker.http.ready_sockets import ReadySockets
from kara_worker.http.request import REASONS, Request, body_decoder
from kara_worker.http.socket_transport import SocketTransport
from kara_worker.pages.page_store import StoredPage

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 30.0  # a request head must be complete in this time (slowloris)
STALL_TIMEOUT_S = 60.0  # a peer that takes no byte for so long is dropped
IDLE_TIMEOUT_S = 600.0  # keep-alive without a request
_BODY_HIGH = 1 << 20  # unread body bytes after which the socket is no longer read


class Application(Protocol):
    """What serves requests. Both methods run in the event loop."""

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        """Answers a bodiless request at once through `connection.send`; False leaves it to `handle`."""
        ...

    async def handle(self, request: Request) -> None:
        """Answers the request; an exception becomes an error response if none was started."""
        ...


class Shared(Protocol):
    """What the connections of one server have in common."""

    loop: asyncio.AbstractEventLoop
    ready: ReadySockets
    disk_waits: DiskWaits
    connections: set[Connection]

    def trusts_peer(self, sock: Any) -> bool: ...


class Connection(asyncio.Protocol):
    """One client's connection: at most one request at a time, later ones wait in the buffer."""

    def __init__(self, application: Application, server: Shared) -> None:
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
        self.deferred = False  # set by who queued an answer that `flush` is to send; and while a disk reads
        self.waited_s = 0.0  # for a disk, before the request that is being answered was looked at again
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
        loop = self._server.loop
        plain = isinstance(transport, SocketTransport)
        self.output: Output = (
            SocketOutput(loop, transport, self._server.disk_waits)
            if plain
            else TransportOutput(loop, transport)
        )
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
            self._next()

    def send_from_disk(self, head: bytes, page: StoredPage, count: int, sent: Callable[[], None]) -> None:
        """Sends a page that the disk still has to deliver; `sent` is told, unless that fails. Later requests
        of the connection wait in its buffer. Not over TLS."""
        assert isinstance(self.output, SocketOutput)

        def delivered() -> None:
            sent()
            self.flush()

        self.deferred = True
        self.output.send_by_thread(head, PageSlice(page, page.offset, count), delivered)

    def answer_after_disk(self, head: bytes, page: StoredPage, start: int, count: int) -> None:
        """Has the disk deliver these bytes of the page's descriptor; then the application is asked once more
        what it answers, with `waited_s`. Later requests of the connection wait in its buffer."""
        began = time.monotonic()

        def delivered(_: int, __: OSError | None) -> None:  # of an error the general way tells
            self.deferred = False
            if self._lost:
                return
            self.waited_s = time.monotonic() - began
            try:
                answered = self._answer(head)
            except Exception:  # the top of a connection
                log.exception("a connection failed, and is closed")
                self.transport.abort()
                return
            finally:
                self.waited_s = 0.0
            if answered:
                self._next()

        self.deferred = True
        self._server.disk_waits.bring(page, start, count, delivered)

    async def drain(self) -> None:
        await self.output.drain()

    @property
    def idle(self) -> bool:
        return self._task is None and not self.output.pending and not self.deferred

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
        if self.deferred:
            return False
        if self._task is not None:
            return self._body is not None and not self._body.done and now - self.since > STALL_TIMEOUT_S
        return now - self.since > (HEAD_TIMEOUT_S if self._buffer else IDLE_TIMEOUT_S)
