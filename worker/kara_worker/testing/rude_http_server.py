"""A file server over HTTP/1.1 on 127.0.0.1, well-behaved until it is told not to be.

    with RudeHttpServer({"data/a.bin": b"..."}) as server:
        server.misbehave(Rudeness(reset_after=1000), path="data/a.bin", times=2)
        fetch(server.url + "/data/a.bin")
        assert [request.status for request in server.requests] == [206, 206, 206]

It knows ETag, Last-Modified, Range, If-Range and If-Match, redirects `/dir` to `/dir/`, lists
directories as nginx does, and logs every request before it answers.
"""

from __future__ import annotations

import gzip
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import blake2b
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote, unquote

_PIECE_BYTES = 256 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7): close sends RST


@dataclass(frozen=True, slots=True)
class Rudeness:
    """What is done to one request. Fields combine; the default is a server as it should be."""

    drop: bool = False  # close without a byte of answer
    silent: bool = False  # no byte of answer until the server closes
    status: int | None = None  # answer this, without looking at the file
    head_status: int | None = None  # the same, for HEAD only
    retry_after: str | None = None  # beside either status
    redirect_to: str | None = None  # 302 to this Location
    ignore_range: bool = False  # 200 and the whole file
    ignore_if_match: bool = False
    etag: Literal["strong", "weak", "none"] = "strong"
    last_modified: bool = True
    content_range: str | None = None  # this header, whatever was asked
    content_length: str | None = None  # this header, whatever is sent; "" for none and closing at the end
    chunked: bool = False  # no Content-Length
    gzip: bool = False  # also when only identity is accepted
    headers: tuple[tuple[str, str], ...] = ()  # beside the others
    short_by: int = 0  # bytes missing at the end of the body, then the connection is closed
    long_by: int = 0  # bytes sent beyond the end of the body
    reset_after: int | None = None  # bytes of the body, then RST
    stall_after: int | None = None  # bytes of the body, then silence until the server closes
    bytes_per_s: int | None = None  # a dribble, byte by byte
    then_put: bytes | None = None  # the file becomes this once the answer's head is made


@dataclass(slots=True)
class Request:
    """One line of the log."""

    method: str
    path: str  # decoded, without the leading slash
    range: str  # the Range header, "" if there is none
    status: int
    headers: dict[str, str] = field(repr=False)  # names in lower case
    connection: int = 0  # the client's port
    sent_bytes: int = 0  # of the body


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    mtime: int
    etag: str  # made once: hashing 16 MiB takes longer than sending them


@dataclass(slots=True)
class _Order:
    rudeness: Rudeness
    path: str | None
    times: int | None


@dataclass(slots=True)
class _Answer:
    status: int
    body: bytes | memoryview = b""
    headers: list[tuple[str, str]] = field(default_factory=list)


class RudeHttpServer:
    """Serves from construction to `close`. Thread-safe.

    Args:
        files: content by path; a path that ends in "/" is served for that directory's URL.
        tls: a server-side context makes it https.
    """

    def __init__(
        self, files: Mapping[str, bytes] | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        self._lock = threading.Lock()  # guards _files, _orders, _mtime
        self._files: dict[str, _File] = {}
        self._orders: list[_Order] = []
        self._mtime = int(time.time()) - 1_000_000
        for path, data in (files or {}).items():
            self.put(path, data)
        self._listener = _Listener(self, tls)
        self.port: int = self._listener.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,), name="rude-http")
        self._thread.start()

    def put(self, path: str, data: bytes) -> None:
        """Makes or overwrites a file; each call is a second later than the one before, for Last-Modified."""
        etag = f'"{blake2b(data, digest_size=8).hexdigest()}"'
        with self._lock:
            self._mtime += 1
            self._files[path] = _File(data, self._mtime, etag)

    def delete(self, path: str) -> None:
        with self._lock:
            del self._files[path]

    def misbehave(self, rudeness: Rudeness, *, path: str | None = None, times: int | None = None) -> None:
        """For the next `times` requests of `path`; None: any path, for ever. First ordered, first served."""
        with self._lock:
            self._orders.append(_Order(rudeness, path, times))

    def behave(self) -> None:
        """Forgets every order."""
        with self._lock:
            self._orders.clear()

    def close(self) -> None:
        """Idempotent; hangs up on everybody and waits for the threads."""
        self._listener.shutdown()
        self._thread.join()
        self._listener.hang_up()
        self._listener.server_close()

    def __enter__(self) -> RudeHttpServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RudeHttpServer {self.url} {len(self._files)} files, {len(self.requests)} requests>"

    def _rudeness_for(self, path: str) -> Rudeness:
        with self._lock:
            for order in self._orders:
                if order.path in (None, path) and order.times != 0:
                    if order.times is not None:
                        order.times -= 1
                    return order.rudeness
        return Rudeness()

    def _file(self, path: str) -> _File | None:
        with self._lock:
            return self._files.get(path)

    def _children(self, directory: str) -> list[str]:
        """Names in a directory ("" or with a trailing slash), directories with a slash; [] if it is none."""
        with self._lock:
            below = [path[len(directory) :] for path in self._files if path.startswith(directory)]
        names = {name.partition("/")[0] + ("/" if "/" in name else "") for name in below}
        return sorted(names - {""})


class _Listener(ThreadingHTTPServer):
    daemon_threads = False  # server_close joins them
    request_queue_size = 128

    def __init__(self, site: RudeHttpServer, tls: ssl.SSLContext | None) -> None:
        self.site = site
        self.closing = threading.Event()
        self._tls = tls
        self._lock = threading.Lock()  # guards _open
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is not None:  # here, in the connection's thread: a handshake can be slow
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open.add(request)
        try:
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().finish_request(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the play; anything else is a bug and is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError | ssl.SSLError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        self.closing.set()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):  # already closed by its thread or the peer
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0], errors="surrogateescape").lstrip("/")
        site = self.server.site
        rude = site._rudeness_for(path)
        answer = self._answer(path, rude)
        self._log(path, answer.status)
        if rude.then_put is not None:
            site.put(path, rude.then_put)
        if rude.silent:
            self.server.closing.wait()
        if rude.silent or rude.drop:
            self.close_connection = True
        else:
            self._send(answer, rude)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._log(unquote(self.path), 405)
        self.close_connection = True
        self._send(_Answer(405), Rudeness())

    do_PUT = do_DELETE = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _log(self, path: str, status: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        port = self.client_address[1]
        self._record = Request(self.command, path, headers.get("range", ""), status, headers, port)
        self.server.site.requests.append(self._record)

    def _answer(self, path: str, rude: Rudeness) -> _Answer:
        status = rude.status or (rude.head_status if self.command == "HEAD" else None)
        if status is not None:
            retry_after = [("Retry-After", rude.retry_after)] if rude.retry_after is not None else []
            return _Answer(status, b"" if status == 304 else f"{status}\n".encode(), retry_after)
        if rude.redirect_to is not None:
            return _Answer(302, b"", [("Location", rude.redirect_to)])
        file = self.server.site._file(path)
        if file is not None:
            return self._answer_file(file, rude, kind="text/html" if path[-1:] in ("", "/") else "")
        return self._answer_directory(path)

    def _answer_directory(self, path: str) -> _Answer:
        site = self.server.site
        if path and not path.endswith("/"):
            if site._file(path + "/") or site._children(path + "/"):
                return _Answer(301, b"", [("Location", f"{site.url}/{quote(path)}/")])
            return _Answer(404, b"not found\n")
        names = site._children(path)
        if path and not names:
            return _Answer(404, b"not found\n")
        title = f"Index of /{escape(path)}"
        links = [f'<a href="{quote(name)}">{escape(name)}</a>\n' for name in ["../", *names]]
        page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1><pre>{''.join(links)}</pre>"
        return _Answer(200, page.encode("utf-8", "surrogateescape"), [("Content-Type", "text/html")])

    def _answer_file(self, file: _File, rude: Rudeness, *, kind: str) -> _Answer:
        etag, modified = file.etag, formatdate(file.mtime, usegmt=True)
        headers = [("Content-Type", kind or "application/octet-stream")]
        if rude.etag != "none":
            headers.append(("ETag", etag if rude.etag == "strong" else "W/" + etag))
        if rude.last_modified:
            headers.append(("Last-Modified", modified))
        wanted = self.headers.get("If-Match")
        if wanted not in (None, "*", etag) and not rude.ignore_if_match:
            return _Answer(412, b"precondition failed\n", headers)
        size = len(file.data)
        asked = None if rude.ignore_range else _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", etag) not in (etag, modified):
            return _Answer(200, file.data, [*headers, ("Accept-Ranges", "bytes")])
        start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
        if start >= size:
            return _Answer(416, b"", [*headers, ("Content-Range", f"bytes */{size}")])
        honest = f"bytes {start}-{stop - 1}/{size}"
        headers.append(("Content-Range", honest if rude.content_range is None else rude.content_range))
        return _Answer(206, memoryview(file.data)[start:stop], headers)

    def _send(self, answer: _Answer, rude: Rudeness) -> None:
        body = answer.body
        if rude.gzip:
            body = gzip.compress(body)
            answer.headers.append(("Content-Encoding", "gzip"))
        self.send_response(answer.status)
        for name, value in (*answer.headers, *rude.headers):
            self.send_header(name, value)
        length = rude.content_length if rude.content_length is not None else str(len(body))
        if rude.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif length:
            self.send_header("Content-Length", length)
        if not rude.chunked and (not length or int(length) > len(body) - rude.short_by):
            self.close_connection = True  # or the client waits for the rest
        self.end_headers()
        if self.command == "HEAD":
            return
        body = memoryview(body)[: len(body) - rude.short_by] if rude.short_by else memoryview(body)
        if rude.long_by:
            body = memoryview(bytes(body) + b"!" * rude.long_by)
        self._send_body(body, rude)

    def _send_body(self, body: memoryview, rude: Rudeness) -> None:
        stops = [stop for stop in (rude.reset_after, rude.stall_after) if stop is not None]
        end = min([len(body), *stops])
        step = 1 if rude.bytes_per_s else _PIECE_BYTES
        for at in range(0, end, step):
            piece = body[at : min(at + step, end)]
            self._record.sent_bytes += len(piece)
            if rude.chunked:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)))
            else:
                self.wfile.write(piece)
            if rude.bytes_per_s and self.server.closing.wait(1 / rude.bytes_per_s):
                return
        if rude.stall_after is not None:
            self.server.closing.wait()
        elif rude.reset_after is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.close_connection = True
        elif rude.chunked:
            self.wfile.write(b"0\r\n\r\n")
