"""Where a worker listens, and how to get a connection to it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

from kara_cache.endpoint import Endpoint
from kara_cache.errors import WorkerUnavailable
from kara_cache.transport.connection import Connection, set_kernel_timeouts


class UnixAddress:
    """A worker's unix socket on this host."""

    def __init__(self, path: str, *, stall_s: float) -> None:
        self.where = f"unix:{path}"
        self._path = path
        self._stall_s = stall_s

    def connect(self, timeout_s: float) -> Connection:
        """A connection ready for a request. Raises WorkerUnavailable (refused, timeout, unreachable)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return _connected(sock, self._path, self.where, timeout_s, self._stall_s)


class TcpAddress:
    """A worker's data port.

    A name is resolved once, and again after a failed connect: the resolver of libc has no timeout of
    ours, and takes locks that a fork in another thread may leave taken.
    """

    def __init__(
        self, endpoint: Endpoint, *, stall_s: float, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self.where = str(endpoint)
        self._host, self._port = endpoint
        self._stall_s = stall_s
        self._tls = tls
        self._resolved: list[tuple[int, Any]] = []  # family and what connect() takes for it

    def connect(self, timeout_s: float) -> Connection:
        """Tries every address of the host. Raises WorkerUnavailable (dns, refused, timeout, tls, ...)."""
        deadline = monotonic() + timeout_s
        resolved = self._resolved or self._resolve()
        self._resolved = []
        for position, (family, address) in enumerate(resolved):
            sock = socket.socket(family, socket.SOCK_STREAM)
            left_s = deadline - monotonic()
            try:
                connection = _connected(sock, address, self.where, left_s, self._stall_s, self._prepare)
            except WorkerUnavailable:
                if position == len(resolved) - 1:
                    raise
                continue
            self._resolved = [(family, address)]
            return connection
        raise WorkerUnavailable(f"{self.where}: the name has no address", reason="dns")

    def _resolve(self) -> list[tuple[int, Any]]:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                socket.inet_pton(family, self._host)
            except OSError:
                continue
            return [(family, (self._host, self._port))]
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise WorkerUnavailable(f"{self.where}: {exc}", reason="dns") from exc
        return [(family, address) for family, _, _, _, address in found]

    def _prepare(self, sock: socket.socket) -> socket.socket:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return sock
        return self._tls().wrap_socket(sock, server_hostname=self._host)


def _connected(
    sock: socket.socket,
    address: Any,
    where: str,
    timeout_s: float,
    stall_s: float,
    prepare: Callable[[socket.socket], socket.socket] | None = None,
) -> Connection:
    try:
        if sock.family == socket.AF_UNIX:
            # a full backlog refuses a non-blocking connect at once, a blocking one waits
            set_kernel_timeouts(sock, timeout_s)
        else:
            sock.settimeout(max(timeout_s, 0.001))
        sock.connect(address)
        if prepare is not None:
            sock = prepare(sock)
        sock.settimeout(None)
        return Connection(sock, where, stall_s=stall_s)
    except OSError as exc:
        sock.close()
        raise WorkerUnavailable(f"{where}: {exc}", reason=_reason(exc)) from exc
    except BaseException:
        sock.close()
        raise


def _reason(exc: OSError) -> str:
    if isinstance(exc, (TimeoutError, BlockingIOError)):
        return "timeout"
    if isinstance(exc, ssl.SSLError):
        return "tls"
    if isinstance(exc, (ConnectionRefusedError, FileNotFoundError)):
        return "refused"
    if isinstance(exc, ConnectionError):
        return "reset"
    return "unreachable"
