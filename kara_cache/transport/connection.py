"""One keep-alive connection to a worker: a blocking socket, kernel timeouts, bytes into the caller's memory.

`settimeout` costs about 5 us a call and makes MSG_WAITALL a lie, because Python then makes the socket
non-blocking (measured). So plain sockets stay blocking and wait by SO_RCVTIMEO and SO_SNDTIMEO, set
once; only a call whose deadline is nearer than the stall timeout sets them again. A TLS socket
retries in C for ever when the kernel times out, so there it is `settimeout`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import weakref
from array import array
from collections.abc import Iterator
from time import monotonic
from typing import Protocol

from kara_cache.errors import FormatError, WorkerUnavailable
from kara_cache.transport.response import KnownHeads, ResponseHead, parse_chunk_size
from kara_cache.wire import MAX_HEAD_BYTES

_BUFFER_BYTES = 64 << 10
_FIRST_RECEIVE = 16 << 10  # with a head: a small body comes along, a large one stays in the kernel
_MAX_DOCUMENT_BYTES = 64 << 20

# plain numbers: arithmetic with the names of `socket`, which are enumerations, takes a microsecond
_RIGHTS, _CUT = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)), int(socket.MSG_CTRUNC)
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))

# what comes next in the body once the bytes at hand are used up
_PLAIN, _CHUNK_SIZE, _CHUNK_END, _TRAILERS = range(4)


class Home(Protocol):
    """Whoever lends a connection."""

    def borrow(self, deadline: float, *, fresh: bool = False) -> Connection: ...

    def give_back(self, connection: Connection) -> None: ...

    def discard(self, connection: Connection) -> None: ...


class ClosedBeforeResponse(WorkerUnavailable):
    """The peer closed before it sent a byte: on a reused connection the request may simply be sent again."""


class Connection:
    """One request at a time, one thread at a time. After any error only `close` is allowed.

    Every method raises WorkerUnavailable, its reason one of refused, reset, timeout, protocol.
    A peer that is silent for `stall_s`, or a call past `deadline`, is a timeout; each 1xx response
    counts as a sign of life.
    """

    def __init__(self, sock: socket.socket, where: str, *, stall_s: float) -> None:
        self.where = where
        self.head: ResponseHead  # of the latest response
        self.home: Home | None = None  # the pool it belongs to
        self.reused = False
        self.connect_s = (
            0.0  # what it took to make it, for the exchange that it was made for; kept by the pool
        )
        self.idle_since = 0.0  # monotonic; kept by the pool
        self.deadline = 0.0  # monotonic; set by `send`, may be moved by the owner
        self.stall_s = stall_s  # may be changed by the owner for one exchange
        self._sock = sock
        # A client nobody closed must not warn about sockets that its user never saw. Not only in `__del__`:
        # in a cycle the collector may come to the socket's own first.
        weakref.finalize(self, sock.close).atexit = False
        self._recv_into = sock.recv_into
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._wait_all = 0 if self._tls else socket.MSG_WAITALL
        self._armed_s = 0.0
        self._arm(stall_s)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._at = 0  # unread bytes are _buffer[_at:_end]
        self._end = 0
        self._body_left = 0  # of the body, or of the chunk
        self._framing = _PLAIN
        self._begun = False  # whether a byte of this response has arrived
        self._parse_head = KnownHeads().parse

    def __repr__(self) -> str:
        state = "closed" if self._sock.fileno() < 0 else "reused" if self.reused else "fresh"
        return f"<Connection {self.where} {state}>"

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # when the interpreter ends, finalizers are not called
            self._sock.close()

    def close(self) -> None:
        """Closes the descriptor, without shutdown or TLS goodbye: the peer may be our parent's as well."""
        self._sock.close()

    def send(self, data: bytes | memoryview, deadline: float) -> None:
        """Starts an exchange with the whole request, or with its head; `deadline` holds for all of it."""
        self.deadline = deadline
        self._at = self._end = self._body_left = 0
        self._begun = False
        self.send_more(data)

    def send_more(self, data: bytes | memoryview) -> None:
        self._keep_deadline()
        try:
            self._sock.sendall(data)
        except (BlockingIOError, TimeoutError):
            raise self._timeout("took nothing") from None
        except OSError as exc:
            raise self._lost(str(exc)) from exc

    def response(self) -> ResponseHead:
        """The head of the final response; 1xx before it only restart the stall timer."""
        while True:
            end = self._buffer.find(b"\r\n\r\n", self._at, self._end) if self._end else -1
            if end < 0:
                if self._end - self._at > MAX_HEAD_BYTES:
                    raise self._protocol(f"a head of more than {MAX_HEAD_BYTES} bytes")
                self._fill(_FIRST_RECEIVE)
                continue
            try:
                head = self._parse_head(bytes(self._view[self._at : end]))
            except FormatError as exc:
                raise self._protocol(str(exc)) from exc
            self._at = end + 4
            if head.status < 200:
                continue
            if head.length is None:
                self._framing = _CHUNK_SIZE
            else:
                self._framing, self._body_left = _PLAIN, head.length
            self.head = head
            return head

    def receive_into(self, view: memoryview) -> int:
        """Fills `view` with body, straight from the kernel but for what came with the head.

        Returns fewer bytes only when the body ended before.
        """
        got, want = 0, len(view)
        while got < want:
            if not self._body_left and not self._next_chunk():
                break
            take = min(want - got, self._body_left)
            held = self._end - self._at
            if held:
                take = min(take, held)
                view[got : got + take] = self._view[self._at : self._at + take]
                self._at += take
            else:
                take = self._receive(view[got : got + take], self._wait_all)
            got += take
            self._body_left -= take
        return got

    def receive_some(self, view: memoryview) -> int:
        """What has arrived of the body, at least one byte; 0 when it has ended."""
        if not self._body_left and not self._next_chunk():
            return 0
        if self._at == self._end and len(view) > _FIRST_RECEIVE:
            take = self._receive(view[: self._body_left], 0)
        else:
            if self._at == self._end:
                self._fill(_BUFFER_BYTES)
            take = min(self._body_left, self._end - self._at, len(view))
            view[:take] = self._view[self._at : self._at + take]
            self._at += take
        self._body_left -= take
        return take

    def receive_all(self, limit: int = _MAX_DOCUMENT_BYTES) -> bytes:
        """The rest of the body, at most `limit` bytes, and its end."""
        parts, size, scratch = [], 0, memoryview(bytearray(_BUFFER_BYTES))
        while count := self.receive_some(scratch):
            size += count
            if size > limit:
                raise self._protocol(f"a document of more than {limit} bytes")
            parts.append(bytes(scratch[:count]))
        self.finish()
        return b"".join(parts)

    def receive_lines(self) -> Iterator[bytes]:
        """The lines of the body as they arrive."""
        rest, scratch = b"", memoryview(bytearray(_BUFFER_BYTES))
        while count := self.receive_some(scratch):
            *lines, rest = (rest + bytes(scratch[:count])).split(b"\n")
            if len(rest) > MAX_HEAD_BYTES:
                raise self._protocol(f"a line of more than {MAX_HEAD_BYTES} bytes")
            yield from lines
        if rest:
            yield rest
        self.finish()

    def finish(self) -> bytes:
        """Checks that the body has ended here. Returns the trailers, as `ResponseHead.fields` has fields."""
        if self._body_left or self._next_chunk():
            raise self._protocol(f"{self._body_left} bytes more of body than were due")
        if self._framing == _PLAIN:
            return b"\r\n"
        trailers = b"\r\n"
        while line := self._line():
            trailers += line.lower() + b"\r\n"
            if len(trailers) > MAX_HEAD_BYTES:
                raise self._protocol(f"trailers of more than {MAX_HEAD_BYTES} bytes")
        self._framing = _PLAIN
        return trailers

    def take_descriptors(self, limit: int) -> list[int]:
        """Waits for the first bytes of the response and returns the descriptors that came with them.

        They belong to the caller, close-on-exec. Call between `send` and `response`.
        """
        self._keep_deadline()
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into(
                (self._view[:_FIRST_RECEIVE],), socket.CMSG_SPACE(4 * limit), _CLOEXEC
            )
        except (BlockingIOError, TimeoutError):
            raise self._timeout("sent nothing") from None
        except OSError as exc:
            raise self._lost(str(exc)) from exc
        descriptors = array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == _RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if not count or flags & _CUT:
            for fd in descriptors:
                os.close(fd)
            raise (
                self._lost("closed by the worker")
                if not count
                else self._protocol(f"more than {limit} descriptors")
            )
        self._begun = True
        self._at, self._end = 0, count
        return descriptors.tolist()

    def _fill(self, count: int) -> None:
        """More bytes into the buffer, at most `count`."""
        if self._at == self._end:
            self._at = self._end = 0
        elif self._end + count > _BUFFER_BYTES:
            held = self._end - self._at
            self._buffer[:held] = self._buffer[self._at : self._end]
            self._at, self._end = 0, held
        self._end += self._receive(self._view[self._end : self._end + count], 0)

    def _receive(self, view: memoryview, flags: int) -> int:
        self._keep_deadline()
        try:
            count = self._recv_into(view, 0, flags)
        except (BlockingIOError, TimeoutError):
            raise self._timeout("sent nothing") from None
        except OSError as exc:
            raise self._lost(str(exc)) from exc
        if not count:
            raise self._lost("closed by the worker")
        self._begun = True
        return count

    def _keep_deadline(self) -> None:
        remaining = self.deadline - monotonic()
        if remaining < self.stall_s or self._armed_s != self.stall_s:
            self._arm(min(remaining, self.stall_s))

    def _arm(self, seconds: float) -> None:
        if seconds <= 0:
            raise WorkerUnavailable(f"{self.where}: out of time", reason="timeout")
        self._armed_s = seconds
        if self._tls:
            self._sock.settimeout(seconds)
        else:
            set_kernel_timeouts(self._sock, seconds)

    def _next_chunk(self) -> bool:
        """Whether more body follows; with a chunked body, moves on to the next chunk."""
        if self._framing in (_PLAIN, _TRAILERS):
            return False
        if self._framing == _CHUNK_END and self._line():
            raise self._protocol("a chunk longer than its size")
        try:
            self._body_left = parse_chunk_size(self._line())
        except FormatError as exc:
            raise self._protocol(str(exc)) from exc
        self._framing = _CHUNK_END if self._body_left else _TRAILERS
        return self._body_left > 0

    def _line(self) -> bytes:
        """The next line of framing, without its end."""
        while (end := self._buffer.find(b"\r\n", self._at, self._end)) < 0:
            if self._end - self._at > MAX_HEAD_BYTES:
                raise self._protocol("a line without an end")
            self._fill(_FIRST_RECEIVE)
        line = bytes(self._view[self._at : end])
        self._at = end + 2
        return line

    def _timeout(self, what: str) -> WorkerUnavailable:
        return WorkerUnavailable(f"{self.where}: {what} for {self._armed_s:.3g} s", reason="timeout")

    def _protocol(self, what: str) -> WorkerUnavailable:
        return WorkerUnavailable(f"{self.where}: {what}", reason="protocol")

    def _lost(self, what: str) -> WorkerUnavailable:
        kind = WorkerUnavailable if self._begun else ClosedBeforeResponse
        return kind(f"{self.where}: {what}", reason="reset")


def set_kernel_timeouts(sock: socket.socket, seconds: float) -> None:
    """SO_RCVTIMEO and SO_SNDTIMEO: one recv or send waits at most so long, also with MSG_WAITALL."""
    micros = max(int(seconds * 1e6), 1000)  # zero would mean for ever
    value = struct.pack("ll", micros // 1_000_000, micros % 1_000_000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
