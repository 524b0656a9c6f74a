"""The way to one worker: its unix socket where it is on this host, else its data port; pooled, kept alive."""

from __future__ import annotations

import errno
import json
import logging
import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import Any
from urllib.parse import quote, urlencode

from kara_cache.endpoint import Endpoint
from kara_cache.errors import WorkerUnavailable
from kara_cache.membership.base import WorkerInfo
from kara_cache.transport.address import TcpAddress, UnixAddress
from kara_cache.transport.connection import ClosedBeforeResponse, Connection
from kara_cache.transport.connection_pool import ConnectionPool
from kara_cache.wire import PREFIX, decode_error

log = logging.getLogger(__name__)

_UNIX_RETRY_S = 30.0  # after the unix socket failed; chosen by feel, TCP serves meanwhile
_PATIENCE = 3  # stall timeouts; signs of life are promised for reads only (docs/protocol.md)
_MAX_ERROR_BYTES = 1 << 20
_ERRNO: dict[type[BaseException], int] = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    PermissionError: errno.EACCES,
}


@dataclass(frozen=True, slots=True)
class Transport:
    """How a process talks to workers; the same for all of them."""

    connect_timeout_s: float
    stall_timeout_s: float  # silence after which a worker counts as dead
    connections: int  # at most, to one worker
    connection_idle_s: float = 30.0  # after so long unused a connection is not trusted any more
    local: bool = True  # use unix sockets of workers on this host
    tls: Callable[[], ssl.SSLContext] | None = None  # None: plain TCP
    authorization: Callable[[], str] | None = None  # the value of the Authorization header, "" for none


class WorkerLink:
    """Connections and exchanges with one worker. Thread-safe; usable in a forked child after `after_fork`."""

    def __init__(self, worker: WorkerInfo, transport: Transport) -> None:
        self.worker = worker
        self.page_bytes = 0  # known once the unix socket was used
        self.passes_pages = False  # with reads, over the unix socket
        self.is_local = False  # the unix socket answered, and with the right identity
        self._transport = transport
        self.patience_s = _PATIENCE * transport.stall_timeout_s  # where silence may mean a slow store
        self._tail_of = ("", b"")  # authorization, and the end of every head with it
        self._tcp = self._pool(
            TcpAddress(
                Endpoint(worker.host, worker.port), stall_s=transport.stall_timeout_s, tls=transport.tls
            )
        )
        self._unix: ConnectionPool | None = None
        self._unix_from = 0.0  # monotonic second before which it is not tried
        if transport.local and worker.socket_path and worker.boot_id and worker.boot_id == boot_id():
            self._unix = self._pool(UnixAddress(worker.socket_path, stall_s=transport.stall_timeout_s))

    def __repr__(self) -> str:
        return f"<WorkerLink {self.worker.id} {self._unix if self.is_local else self._tcp}>"

    @property
    def where(self) -> str:
        return self._tcp.address.where

    def _pool(self, address: TcpAddress | UnixAddress) -> ConnectionPool:
        transport = self._transport
        return ConnectionPool(
            address,
            limit=transport.connections,
            idle_s=transport.connection_idle_s,
            connect_timeout_s=transport.connect_timeout_s,
        )

    # -- requests ----------------------------------------------------------------------------------

    def request(
        self, method: str, name: str, query: Iterable[tuple[str, str | int]], length: int | None = None
    ) -> bytes:
        """The head of a request; `length` bytes of body follow it."""
        # quote, not quote_plus: a worker takes "+" for a plus
        arguments = urlencode(list(query), quote_via=quote)
        target = f"{PREFIX}{name}?{arguments}" if arguments else PREFIX + name
        framing = b"" if length is None else b"\r\nContent-Length: %d" % length
        head, _, rest = self.tail().partition(b"\r\n")
        return f"{method} {target}".encode("ascii") + head + framing + b"\r\n" + rest

    def tail(self) -> bytes:
        """What follows the target in every request without a body: protocol, host, credentials."""
        authorization = self._transport.authorization
        value = authorization() if authorization is not None else ""
        known, tail = self._tail_of
        if tail and known == value:
            return tail
        field = f"Authorization: {value}\r\n" if value else ""
        tail = f" HTTP/1.1\r\nHost: {self.where}\r\n{field}\r\n".encode("latin-1")
        self._tail_of = value, tail
        return tail

    # -- exchanges ---------------------------------------------------------------------------------

    def send(self, request: bytes, deadline: float, *, patient: bool = False) -> Connection:
        """Sends a whole request and waits for the head of the answer, `connection.head`.

        The exchange ends with `release`, `discard` or `document`. `patient` allows for more silence,
        where a worker may wait for its store without a sign of life. A kept-alive connection that
        the worker had closed meanwhile is replaced once, silently: that is no failure. Raises
        WorkerUnavailable, or WorkerBusy when all connections are lent.
        """
        connection = self.start(request, deadline, patient=patient)
        if patient:
            connection.stall_s = self.patience_s
        connection = self.answer(connection, request, deadline)
        connection.stall_s = self._transport.stall_timeout_s
        return connection

    def start(self, request: bytes, deadline: float, *, patient: bool = False) -> Connection:
        """The first half of `send`: the worker has something to do. `answer` must follow."""
        connection = self.borrow(deadline)
        if patient:  # before anything is sent: two system calls less
            connection.stall_s = self.patience_s
        try:
            connection.send(request, deadline)
            return connection
        except ClosedBeforeResponse:
            if not connection.reused:
                self.discard(connection)
                raise
        except BaseException:
            self.discard(connection)
            raise
        return self._send_again(connection, request, deadline)

    def answer(self, connection: Connection, request: bytes, deadline: float) -> Connection:
        """The second half of `send`."""
        try:
            connection.response()
            return connection
        except ClosedBeforeResponse:
            if not connection.reused:
                self.discard(connection)
                raise
        except BaseException:
            self.discard(connection)
            raise
        connection = self._send_again(connection, request, deadline)
        try:
            connection.response()
            return connection
        except BaseException:
            self.discard(connection)
            raise

    def _send_again(self, dead: Connection, request: bytes, deadline: float) -> Connection:
        self.discard(dead)
        assert dead.home is not None
        connection = dead.home.borrow(deadline, fresh=True)
        try:
            connection.send(request, deadline)
            return connection
        except BaseException:
            self.discard(connection)
            raise

    def send_for_descriptors(
        self, request: bytes, limit: int, deadline: float
    ) -> tuple[Connection, list[int]]:
        """As `send`, over the unix socket, with the descriptors that came along: the caller's to close."""
        if self._unix is None:
            raise WorkerUnavailable(f"{self.worker.id}: no unix socket", reason="protocol")
        connection = self._unix.borrow(deadline)
        try:
            connection.send(request, deadline)
            return connection, self._descriptors(connection, limit)
        except ClosedBeforeResponse:
            if not connection.reused:
                self.discard(connection)
                raise
        except BaseException:
            self.discard(connection)
            raise
        connection = self._send_again(connection, request, deadline)
        try:
            return connection, self._descriptors(connection, limit)
        except BaseException:
            self.discard(connection)
            raise

    def _descriptors(self, connection: Connection, limit: int) -> list[int]:
        fds = connection.take_descriptors(limit)
        try:
            connection.response()
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def borrow(self, deadline: float, *, fresh: bool = False) -> Connection:
        """A connection by the best way, for this thread alone."""
        unix = self._unix
        if unix is None or monotonic() < self._unix_from:
            return self._tcp.borrow(deadline, fresh=fresh)
        try:
            if not self.is_local:
                self._check_identity(unix, deadline)
            return unix.borrow(deadline, fresh=fresh)
        except WorkerUnavailable as exc:
            self.is_local = False
            if not self.worker.port:
                raise
            self._unix_from = monotonic() + _UNIX_RETRY_S
            log.debug("unix socket of worker %s: %s; using %s", self.worker.id, exc, self.where)
        return self._tcp.borrow(deadline, fresh=fresh)

    def dial(self, timeout_s: float) -> Connection:
        """A connection outside the pools, for an exchange that may last; the caller closes it."""
        limit_s, unix = min(self._transport.connect_timeout_s, timeout_s), self._unix
        if unix is None or (self.worker.port and not self.is_local):
            return self._tcp.address.connect(limit_s)
        if not self.is_local:  # nobody asked a worker without a port before
            self._check_identity(unix, monotonic() + limit_s)
        return unix.address.connect(limit_s)

    def release(self, connection: Connection) -> None:
        """Ends an exchange whose body was read to its end."""
        assert connection.home is not None
        if connection.head.keep_alive:
            connection.home.give_back(connection)
        else:
            connection.home.discard(connection)

    def discard(self, connection: Connection) -> None:
        """Ends an exchange whatever its state."""
        assert connection.home is not None
        connection.home.discard(connection)

    def document(self, connection: Connection, path: str) -> Any:
        """Ends the exchange with the JSON that was answered, or raises the error that was."""
        failed = connection.head.status != 200
        try:
            answer = answered_error(connection, path) if failed else _json(connection)
        except BaseException:
            self.discard(connection)
            raise
        self.release(connection)
        if failed:
            try:
                raise answer
            finally:
                del answer  # in a frame of its own traceback it would wait for the collector
        return answer

    def _check_identity(self, pool: ConnectionPool, deadline: float) -> None:
        """A socket path may have been taken over by another worker: ask who it is, once."""
        connection = pool.borrow(deadline, fresh=True)
        try:
            connection.send(self.request("GET", "/worker", ()), deadline)
            connection.response()
        except BaseException:
            self.discard(connection)
            raise
        try:
            document = self.document(connection, "/worker")
            found, page_bytes = document["id"], int(document["page_bytes"])
        except (KeyError, TypeError, ValueError, OSError) as exc:
            raise WorkerUnavailable(f"{connection.where}: {exc!r}", reason="protocol") from exc
        if found != self.worker.id or page_bytes <= 0:
            what = f"{connection.where}: is worker {found}, not {self.worker.id}"
            raise WorkerUnavailable(what, reason="protocol")
        self.page_bytes = page_bytes
        self.passes_pages = document.get("passes_pages") is True
        self.is_local = True

    # -- life --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Idempotent; exchanges in other threads end first."""
        self._tcp.close()
        if self._unix is not None:
            self._unix.close()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._tcp.after_fork()
        if self._unix is not None:
            self._unix.after_fork()


def answered_error(connection: Connection, path: str) -> BaseException:
    """The exception that an answer other than 200 carries; reads its body to the end."""
    body = connection.receive_all(_MAX_ERROR_BYTES)
    return named_error(decode_error(connection.head.status, body, connection.where), path)


def named_error(error: BaseException, path: str) -> BaseException:
    """With the number and the file that Python's own errors of files have."""
    number = _ERRNO.get(type(error))
    if number is None:
        return error
    text = str(error).removesuffix(f": {path}")  # the message has the file's name at its end already
    return type(error)(number, text or os.strerror(number), path)


def _json(connection: Connection) -> Any:
    body = connection.receive_all()
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise WorkerUnavailable(f"{connection.where}: no JSON: {body[:80]!r}", reason="protocol") from exc


@cache
def boot_id() -> str:
    """Of the running kernel: two processes that read the same one share a host. "" where it is not Linux."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
