"""Keep-alive connections to one host, for requests without a body whose answers go into the caller's memory.

A read of 20 KB costs 40 us of processor time this way where urllib3 takes 250 (measured): heads are found
by `bytes.find`, and a body that has a length is received where it is wanted. Everything unusual (chunks,
folded headers) is left to http.client, which is given the bytes that have come already.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import struct
import weakref
from collections import deque
from collections.abc import Callable

_BUFFER_BYTES = 64 << 10
_FIRST_RECEIVE = 32 << 10  # with a head: a small body comes along, a large one stays in the kernel
_PIECE_BYTES = 256 << 10
_NO_BODY = frozenset((204, 304))
_TIMEVAL = struct.Struct("@ll")

Dial = Callable[[float], socket.socket]
"""Connects within so many seconds; TLS is done. Raises OSError."""


class BadAnswer(OSError):
    """What came is not HTTP."""


class Headers(dict[str, str]):
    """By name, whatever its case; values of one name are joined by ", " (RFC 9110, 5.3)."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # "" is no header
        return super().get(name.lower(), default)

    def add(self, name: str, value: str) -> None:
        name = name.lower()
        known = super().get(name)
        self[name] = value if known is None else f"{known}, {value}"


class Answer:
    """A response whose body is still to be read. Always `finish` it: that gives the connection back."""

    def __init__(self, lines: Lines, line: Line, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.left: int | None = None  # bytes of the body that are still to come; None: nobody knows
        self.chunked = False
        self._lines = lines
        self._line: Line | None = line
        self._reuse = False
        self._odd: http.client.HTTPResponse | None = None

    def frame(self, version: bytes, *, has_body: bool) -> None:
        """Decides where the body ends (RFC 9112, 6.3). Raises BadAnswer."""
        headers = self.headers
        connection = headers.get("connection").lower()
        self._reuse = version == b"HTTP/1.1" and "close" not in connection
        if not has_body or self.status in _NO_BODY:
            self.left = 0
        elif "transfer-encoding" in headers:
            assert self._line is not None
            self._odd, self.chunked = self._line.reread(), True
        elif "content-length" in headers:
            length = headers.get("content-length")
            if not length.isascii() or not length.isdigit():
                raise BadAnswer(f"Content-Length {length!r}")
            self.left = int(length)
        else:
            self._reuse = False
        if self.left == 0:
            self.finish()

    def receive_into(self, view: memoryview) -> int:
        """What one receive brought, straight into `view`; 0 at the end, or where the connection broke off.

        Raises OSError, http.client.HTTPException.
        """
        line, left = self._line, self.left
        if line is None or not len(view):
            return 0
        if self._odd is not None:
            data = self._odd.read1(len(view))
            view[: len(data)] = data
            if not data:
                self.finish()
            return len(data)
        count = line.receive_into(view if left is None else view[:left])
        if left is None:
            if not count:
                self.finish()
            return count
        self.left = left - count
        if self.left == 0:
            self.finish()
        elif not count:
            self._reuse = False
        return count

    @property
    def ended(self) -> bool:
        """Whether all of the body has been read, or the connection given up."""
        return self._line is None

    def finish(self) -> None:
        """Idempotent. A body that nobody read is thrown away where it is at hand already."""
        line, self._line = self._line, None
        if line is None:
            return
        if self._odd is not None:
            whole = self._odd.isclosed()
        else:
            wanted = self.status in (200, 206)  # the text of an error is read: cheaper than to connect anew
            whole = self.left is not None and line.skip(self.left, may_wait=not wanted)
        if self._reuse and whole:
            self._lines.give_back(line)
        else:
            line.close()


class Line:
    """One connection, one request at a time. Errors are OSErrors; after one only `close` is allowed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # A store that nobody closed must not warn about sockets that its user never saw, as in `Connection`.
        weakref.finalize(self, sock.close).atexit = False
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._wait_all = 0 if self._tls else socket.MSG_WAITALL  # until SO_RCVTIMEO is over
        self._armed_s = -1.0
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._at = self._end = self._head_at = 0  # unread bytes are _buffer[_at:_end]
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        if not self._tls:
            sock.settimeout(None)  # waits by SO_RCVTIMEO: settimeout would poll before each call

    def is_quiet(self) -> bool:
        """Nothing has come since the last answer: the peer has neither closed nor gone on talking."""
        return self._at == self._end and not self._poll.poll(0)

    def arm(self, silence_s: float) -> None:
        if silence_s == self._armed_s:
            return
        self._armed_s = silence_s
        if self._tls:
            self._sock.settimeout(silence_s)
            return
        whole = int(silence_s)
        packed = _TIMEVAL.pack(whole, max(1, int((silence_s - whole) * 1e6)))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)

    def send(self, request: bytes) -> None:
        self._at = self._end = 0
        try:
            self._sock.sendall(request)
        except BlockingIOError:
            raise TimeoutError("it took nothing") from None

    def head(self) -> list[bytes]:
        """The lines of the head of the final answer; ConnectionResetError where nothing came."""
        while True:
            end = self._buffer.find(b"\r\n\r\n", self._at, self._end)
            if end < 0:
                self._more()
                continue
            self._head_at = self._at
            lines = bytes(self._view[self._at : end]).split(b"\r\n")
            self._at = end + 4
            if not lines[0].startswith(b"HTTP/1.") or not lines[0][9:12].isdigit():
                raise BadAnswer(f"{lines[0][:60]!r} is no HTTP")
            if lines[0][9:10] != b"1":
                return lines

    def _more(self) -> None:
        if self._end == _BUFFER_BYTES:
            raise BadAnswer(f"a head of more than {_BUFFER_BYTES} bytes")
        try:
            count = self._sock.recv_into(
                self._view[self._end :], min(_FIRST_RECEIVE, _BUFFER_BYTES - self._end)
            )
        except BlockingIOError:
            raise TimeoutError("it is silent") from None
        if not count:
            if self._end:
                raise BadAnswer("it broke off in the middle of a head")
            raise ConnectionResetError("it closed without an answer")
        self._end += count

    def receive_into(self, view: memoryview) -> int:
        held = self._end - self._at
        if held:
            count = min(held, len(view))
            view[:count] = self._view[self._at : self._at + count]
            self._at += count
            return count
        try:  # a quarter of a MiB at once: a system call for each segment costs more than the bytes
            return self._sock.recv_into(view[:_PIECE_BYTES], 0, self._wait_all)
        except BlockingIOError:
            raise TimeoutError("it is silent") from None

    def skip(self, left: int, *, may_wait: bool) -> bool:
        """Whether `left` bytes of a body were at hand, or came with one receive, and nothing else."""
        held = self._end - self._at
        if held < left <= _BUFFER_BYTES and may_wait:
            self._at = 0
            try:
                self._end = held + self._sock.recv_into(self._view[held:], left - held)
            except OSError:
                return False
            held = self._end
        self._at = self._end
        return held == left

    def reread(self) -> http.client.HTTPResponse:
        """The same answer from its first byte, read by the standard library."""
        replay = _Replay(self._sock, bytes(self._view[self._head_at : self._end]))
        self._at = self._end
        response = http.client.HTTPResponse(replay)  # type: ignore[arg-type]  # it only calls makefile
        response.begin()
        return response

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # when the interpreter ends, finalizers are not called
            self._sock.close()

    def close(self) -> None:
        self._sock.close()


class _Replay(io.RawIOBase):
    """Bytes that have come, then those that come."""

    def __init__(self, sock: socket.socket, prefix: bytes) -> None:
        self._sock = sock
        self._prefix = prefix

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of any Buffer
        if self._prefix:
            piece = self._prefix[: len(buffer)]
            buffer[: len(piece)] = piece
            self._prefix = self._prefix[len(piece) :]
            return len(piece)
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            raise TimeoutError("it is silent") from None


class Lines:
    """Thread-safe: deques are. Not to be used after a fork (`PerProcess`)."""

    def __init__(self, dial: Dial, *, keep: int) -> None:
        self._dial = dial
        self._idle: deque[Line] = deque(maxlen=keep)

    def ask(self, request: bytes, *, connect_s: float, silence_s: float, has_body: bool = True) -> Answer:
        """Sends a whole request that may be sent twice.

        A connection that the peer gave up meanwhile is not its failure: then another one is made.
        Raises OSError, ssl.SSLError among them; http.client.HTTPException.
        """
        while (line := self._reusable()) is not None:
            try:
                return self._exchange(line, request, silence_s, has_body)
            except (ConnectionResetError, BrokenPipeError):  # noqa: PERF203 - the loop is there for it
                continue
        return self._exchange(Line(self._dial(connect_s)), request, silence_s, has_body)

    def give_back(self, line: Line) -> None:
        if len(self._idle) == self._idle.maxlen:
            line.close()
        else:
            self._idle.append(line)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _reusable(self) -> Line | None:
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return None
            if line.is_quiet():
                return line
            line.close()

    def _exchange(self, line: Line, request: bytes, silence_s: float, has_body: bool) -> Answer:
        try:
            line.arm(silence_s)
            line.send(request)
            first, *rest = line.head()
            headers = Headers()
            for entry in rest:
                name, colon, value = entry.partition(b":")
                if not colon or name[:1] in (b" ", b"\t"):
                    raise BadAnswer(f"a header {entry[:60]!r}")
                headers.add(name.decode("latin-1"), value.strip().decode("latin-1"))
            answer = Answer(self, line, int(first[9:12]), headers)
            answer.frame(first[:8], has_body=has_body)
        except BaseException:
            line.close()
            raise
        return answer
