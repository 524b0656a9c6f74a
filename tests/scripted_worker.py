"""A worker of the data protocol in memory, over real sockets, that does what a test tells it to.

Left alone it answers as docs/protocol.md says. `plan` makes the next requests of a kind go wrong.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from kara_cache.checksum import checksum
from kara_cache.membership.base import MembershipView, MemberState, WorkerInfo
from kara_cache.page import PageHeader, PageId, file_id
from kara_cache.transport.worker_link import boot_id
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import PREFIX, RANGE_FRAME, decode_ranges, encode_error, encode_info, pieces

WAIT_S = 20.0  # for anything a test waits for


@dataclass
class Request:
    method: str
    name: str  # path below /kara/v1
    query: dict[str, str]
    fields: dict[str, str]
    body: bytes
    unix: bool


Behaviour = Callable[["Answer"], None]


@dataclass
class Answer:
    """One exchange on the worker's side. A behaviour that returns normally keeps the connection."""

    worker: ScriptedWorker
    request: Request
    sock: socket.socket

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def respond(self, status: int, body: bytes, *fields: str, reason: str = "OK") -> None:
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", *fields]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def respond_json(self, document: Any) -> None:
        self.respond(200, json.dumps(document).encode())

    def respond_error(self, error: BaseException) -> None:
        status, document = encode_error(error)
        self.respond(status, json.dumps(document).encode(), reason="Error")

    def honest(self) -> None:
        try:
            self.worker.answer(self)
        except (OSError, ValueError) as exc:
            self.respond_error(exc)

    def range(self) -> tuple[bytes, int]:
        """The bytes a read asks for, and where they start."""
        data = self.worker.content(self.request.query["path"])
        start = int(self.request.query["start"])
        return data[start : start + int(self.request.query["length"])], start

    def sums(self, data: bytes, start: int) -> str:
        cut = pieces(start, len(data), self.worker.page_bytes)
        return ",".join(f"{checksum(data[at - start : stop - start]):016x}" for at, stop in cut)

    def hit_head(self, data: bytes, start: int) -> bytes:
        return (
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\nX-Kara-Page: {self.worker.page_bytes}\r\n"
            f"X-Kara-Source: hit\r\nX-Kara-Sum: {self.sums(data, start)}\r\n\r\n"
        ).encode()

    def fill_head(self) -> bytes:
        return (
            f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Kara-Page: {self.worker.page_bytes}\r\n"
            "X-Kara-Source: fill\r\nTrailer: X-Kara-Sum\r\n\r\n"
        ).encode()


def fail(error: BaseException) -> Behaviour:
    return lambda answer: answer.respond_error(error)


def raw(data: bytes) -> Behaviour:
    """Says exactly this."""
    return lambda answer: answer.send(data)


def reset(answer: Answer) -> None:
    """RST in place of an answer."""
    answer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionAbortedError


def hang_up(answer: Answer) -> None:
    """FIN in place of an answer."""
    raise ConnectionAbortedError


def stall(answer: Answer) -> None:
    """Silence until the worker is closed."""
    answer.worker.stalled.set()
    answer.worker.closing.wait(WAIT_S)
    raise ConnectionAbortedError


def cut_after(count: int) -> Behaviour:
    """The first `count` bytes of the body, then FIN."""

    def behave(answer: Answer) -> None:
        data, start = answer.range()
        answer.send(answer.hit_head(data, start) + data[:count])
        raise ConnectionAbortedError

    return behave


def stall_after(count: int) -> Behaviour:
    def behave(answer: Answer) -> None:
        data, start = answer.range()
        answer.send(answer.hit_head(data, start) + data[:count])
        stall(answer)

    return behave


def flip(position: int) -> Behaviour:
    """One wrong bit under right sums."""

    def behave(answer: Answer) -> None:
        data, start = answer.range()
        wrong = bytearray(data)
        wrong[position] ^= 1
        answer.send(answer.hit_head(data, start) + wrong)

    return behave


def fill(*chunk_sizes: int, interim: int = 0) -> Behaviour:
    """A streamed answer: `interim` signs of life, then chunks of these sizes in turn."""

    def behave(answer: Answer) -> None:
        data, start = answer.range()
        answer.send(b"HTTP/1.1 102 Processing\r\n\r\n" * interim + answer.fill_head())
        at, turn = 0, 0
        while at < len(data):
            piece = data[at : at + chunk_sizes[turn % len(chunk_sizes)]]
            answer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            at, turn = at + len(piece), turn + 1
        answer.send(f"0\r\nX-Kara-Sum: {answer.sums(data, start)}\r\n\r\n".encode())

    return behave


def slow(event: threading.Event, beats: int) -> Behaviour:
    """Sends `beats` signs of life, one each time `event` is set by the test, then answers."""

    def behave(answer: Answer) -> None:
        for _ in range(beats):
            if not event.wait(WAIT_S):
                raise ConnectionAbortedError
            answer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        answer.honest()

    return behave


def close_after(answer: Answer) -> None:
    """A good answer, then FIN without having said so: the kept-alive connection is dead."""
    answer.honest()
    raise ConnectionAbortedError


@dataclass
class _File:
    data: bytes
    version: str


class ScriptedWorker:
    """Serves `files` (kara path -> content) on loopback and, given a directory, on a unix socket."""

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        identity: str = "w",
        page_bytes: int = 64 << 10,
        unix_dir: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.id = identity
        self.page_bytes = page_bytes
        self.files = {path: _File(data, f"v1-{len(data)}") for path, data in (files or {}).items()}
        self.cached: set[int] | None = None  # page indices it has descriptors for; None: all
        self.requests: list[Request] = []
        self.accepted = 0
        self.stalled = threading.Event()  # a behaviour has begun to stall
        self.closing = threading.Event()
        self.pushed: list[dict[str, Any]] = []
        self.socket_path = str(unix_dir / f"{identity}.sock") if unix_dir is not None else ""
        self._plans: dict[tuple[str, str], deque[Behaviour]] = {}
        self._always: dict[tuple[str, str], Behaviour] = {}
        self._lock = threading.Lock()  # guards the lists above and below
        self._changed = threading.Condition(self._lock)
        self._answered = 0
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listeners: list[socket.socket] = []
        self.port = 0

    # -- what a test says --------------------------------------------------------------------------

    def plan(self, method: str, name: str, *behaviours: Behaviour) -> None:
        """The next requests of this kind get these, one each; then it is honest again."""
        with self._lock:
            self._plans.setdefault((method, name), deque()).extend(behaviours)

    def always(self, method: str, name: str, behaviour: Behaviour | None) -> None:
        """All requests of this kind get this; None ends it."""
        with self._lock:
            self._always.pop((method, name), None)
            if behaviour is not None:
                self._always[method, name] = behaviour

    def count(self, method: str, name: str) -> int:
        with self._lock:
            return sum(1 for r in self.requests if (r.method, r.name) == (method, name))

    def settle(self) -> None:
        """Waits until it is done with every request that it got, its own descriptors closed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._answered == len(self.requests), WAIT_S)

    def open_descriptors(self) -> int:
        """Of this process, none of them for a request that is still being answered."""
        self.settle()
        return len(os.listdir("/proc/self/fd"))

    def content(self, path: str) -> bytes:
        try:
            return self.files[path].data
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", path) from None

    def file(self, path: str) -> FileInfo:
        return FileInfo(path, len(self.content(path)), self.files[path].version)

    def member(self, **changes: Any) -> WorkerInfo:
        values: dict[str, Any] = {
            "id": self.id,
            "host": "127.0.0.1",
            "port": self.port,
            "socket_path": self.socket_path,
            "boot_id": boot_id() if self.socket_path else "",
        }
        return WorkerInfo(**{**values, **changes})

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> ScriptedWorker:
        tcp = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = tcp.getsockname()[1]
        self._listen(tcp)
        if self.socket_path:
            unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            unix.bind(self.socket_path)
            unix.listen(128)
            self._listen(unix)
        return self

    def _listen(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        self._spawn(self._accept, listener)

    def refuse(self) -> None:
        """Stops listening and drops its connections, like a process that died."""
        for listener in self._listeners:
            _shut(listener)  # wakes accept()
            listener.close()
        self._listeners.clear()
        if self.socket_path and os.path.exists(self.socket_path):
            os.unlink(self.socket_path)
        with self._lock:
            for sock in self._sockets:
                _shut(sock)

    def drop_connections(self) -> None:
        """As a restart does: what was connected is gone, who connects anew is served."""
        with self._lock:
            sockets, threads = list(self._sockets), list(self._threads)
        for sock in sockets:
            _shut(sock)
        for thread in threads:
            if thread.name == "scripted-serve":
                thread.join(WAIT_S)

    def close(self) -> None:
        self.closing.set()
        self.refuse()
        for thread in self._threads:
            thread.join(WAIT_S)

    def __enter__(self) -> ScriptedWorker:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _spawn(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        name = f"scripted-{work.__name__.strip('_')}"
        thread = threading.Thread(target=work, args=(sock,), name=name)
        with self._lock:  # who closes joins what is in the list, so it has been started by then
            self._threads.append(thread)
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                self._sockets.add(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        reader = None
        try:
            if self._tls is not None and sock.family == socket.AF_INET:
                sock = self._wrapped(sock)
            reader = sock.makefile("rb")
            while (request := _read_request(reader, sock.family == socket.AF_UNIX)) is not None:
                with self._lock:
                    self.requests.append(request)
                    planned = self._plans.get((request.method, request.name))
                    always = self._always.get((request.method, request.name))
                    behave = planned.popleft() if planned else always
                answer = Answer(self, request, sock)
                try:
                    (behave or Answer.honest)(answer)
                finally:
                    with self._changed:
                        self._answered += 1
                        self._changed.notify_all()
        except (OSError, ValueError):
            pass  # the peer is gone, or a behaviour ended the connection
        finally:
            if reader is not None:
                reader.close()
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _wrapped(self, sock: socket.socket) -> socket.socket:
        assert self._tls is not None
        wrapped = self._tls.wrap_socket(sock, server_side=True)
        with self._lock:
            self._sockets.discard(sock)
            self._sockets.add(wrapped)
        return wrapped

    # -- the protocol ------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        request = answer.request
        handlers: dict[tuple[str, str], Callable[[Answer], None]] = {
            ("GET", "/read"): self._read,
            ("POST", "/ranges"): self._ranges,
            ("GET", "/pages"): self._pages,
            ("PUT", "/file"): self._put,
            ("DELETE", "/file"): self._delete,
            ("GET", "/list"): self._list,
        }
        handler = handlers.get((request.method, request.name))
        if handler is not None:
            handler(answer)
            return
        query = request.query
        if request.name == "/info":
            answer.respond_json(encode_info(self.file(query["path"])))
        elif request.name == "/worker":
            answer.respond_json({"id": self.id, "page_bytes": self.page_bytes, "state": "active"})
        elif request.name == "/mounts":
            answer.respond_json([{"name": "m", "url": "s3://bucket/data", "replicas": 1}])
        elif request.name == "/free":
            answer.respond_json({"pages": 2, "bytes": 100})
        elif request.name == "/explain":
            answer.respond_json({"pages": 1, "cached": 1, "runs": [[0, 0]]})
        elif request.name == "/client-metrics":
            with self._lock:
                self.pushed.append(json.loads(request.body))
            answer.respond_json({})
        elif request.name in ("/verify", "/directory"):
            answer.respond_json({})
        else:
            raise ValueError(f"no such endpoint: {request.name}")

    def _read(self, answer: Answer) -> None:
        data, start = answer.range()
        answer.send(answer.hit_head(data, start) + data)

    def _ranges(self, answer: Answer) -> None:
        files, ranges = decode_ranges(answer.request.body)
        frames = bytearray()
        for index in reversed(range(len(ranges))):  # any order is allowed
            item = ranges[index]
            try:
                content = self.content(files[item.file].path)
            except FileNotFoundError as exc:
                frames += error_frame(index, exc)
                continue
            frames += data_frame(index, content[item.start : item.start + item.length])
        answer.respond(200, bytes(frames))

    def _pages(self, answer: Answer) -> None:
        query = answer.request.query
        path, version, size = query["path"], query["version"], int(query["size"])
        data, first = self.content(path), int(query["first"])
        indices = [
            index
            for index in range(first, first + int(query["count"]))
            if index * self.page_bytes < size and (self.cached is None or index in self.cached)
        ]
        files = []
        for index in indices:
            page = data[index * self.page_bytes : (index + 1) * self.page_bytes]
            files.append(
                page_file(PageId(file_id(path, version, size), index), page, page_bytes=self.page_bytes)
            )
        body = json.dumps({"pages": indices}).encode()
        message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        if files:
            socket.send_fds(answer.sock, [message], [file.fileno() for file in files])
        else:
            answer.send(message)
        for file in files:
            file.close()

    def _put(self, answer: Answer) -> None:
        path, body = answer.request.query["path"], answer.request.body
        if answer.request.query.get("append") == "1" and path in self.files:
            body = self.files[path].data + body
        with self._lock:
            self.files[path] = _File(body, f"w{len(self.requests)}-{len(body)}")
        answer.respond_json(encode_info(self.file(path)))

    def _delete(self, answer: Answer) -> None:
        path = answer.request.query["path"]
        self.content(path)
        with self._lock:
            del self.files[path]
        answer.respond_json({})

    def _list(self, answer: Answer) -> None:
        below = answer.request.query["path"].rstrip("/") + "/"
        entries = [self.file(path) for path in sorted(self.files) if path.startswith(below)]
        if not entries:
            raise FileNotFoundError(2, "No such file or directory", below)
        answer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for entry in entries:
            line = json.dumps(encode_info(entry)).encode() + b"\n"
            answer.send(b"%x\r\n%b\r\n" % (len(line), line))
        answer.send(b"0\r\n\r\n")


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def data_frame(index: int, data: bytes, *, total: int | None = None) -> bytes:
    return RANGE_FRAME.pack(index, 0, len(data), checksum(data) if total is None else total) + data


def error_frame(index: int, error: BaseException) -> bytes:
    body = json.dumps(encode_error(error)[1]).encode()
    return RANGE_FRAME.pack(index, 1, len(body), checksum(body)) + body


def page_file(page: PageId, data: bytes, *, page_bytes: int) -> Any:
    """An unlinked page file as workers pass them."""
    header = PageHeader.of(page, data, page_bytes=page_bytes, created_ns=1, path="")
    file = TemporaryFile(buffering=0)  # noqa: SIM115
    file.write(header.encode() + data)
    return file


def _read_request(reader: Any, unix: bool) -> Request | None:
    line = reader.readline().decode()
    if not line:
        return None
    method, target, _ = line.split(" ")
    fields = {}
    while (field_line := reader.readline().decode().strip()) != "":
        name, _, value = field_line.partition(":")
        fields[name.lower()] = value.strip()
    split = urlsplit(target)
    query = dict(parse_qsl(split.query.replace("+", "%2B"), keep_blank_values=True))
    body = reader.read(int(fields.get("content-length", 0)))
    return Request(method, unquote(split.path).removeprefix(PREFIX), query, fields, body, unix)


class FixedMembership:
    """A membership that changes when the test says so. Ships nothing over the network."""

    def __init__(self, *workers: WorkerInfo) -> None:
        self.closed = False
        self.replace(*workers)

    def replace(self, *workers: WorkerInfo) -> None:
        self._view = MembershipView(tuple(sorted(workers, key=lambda w: w.id)), 0, "static")

    def view(self) -> MembershipView:
        return self._view

    def close(self) -> None:
        self.closed = True


__all__ = ["FixedMembership", "MemberState", "ScriptedWorker"]
