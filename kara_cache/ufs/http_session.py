"""Requests of one process to one HTTP mount: pooled connections, checked addresses, redirects by hand."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from string import punctuation
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from kara_cache.errors import UnderStoreError
from kara_cache.ufs.address import AddressRefused, AddressRule
from kara_cache.ufs.http_head import content_length
from kara_cache.ufs.retry import Attempts, RetryBudget, TryAgain

MAX_REDIRECTS = 5
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_IDLE_CONNECTIONS = 64  # kept for each host; more may be open at once
_PIECE_BYTES = 64 << 10
_BASE_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "kara-cache"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin(url: SplitResult) -> tuple[str, str, int]:
    """RFC 6454: who may see what was meant for whom."""
    scheme = url.scheme.lower()
    return scheme, (url.hostname or "").lower(), url.port or _DEFAULT_PORTS.get(scheme, 0)


def tls_context(ca: str, *, verify: bool) -> ssl.SSLContext:
    """Trusts the system's authorities, or only those of the PEM file `ca`. OSError if that cannot be read.

    Made by urllib3, because its 1.26 line compares names itself and cannot reach an IP address with a
    context that does.
    """
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if verify else ssl.CERT_NONE)
    if ca:
        context.load_verify_locations(cafile=ca)
    else:
        context.load_default_certs()
    return context


@dataclass(frozen=True, slots=True)
class HttpMount:
    """What a session needs to know of its mount."""

    home: SplitResult  # the root URL, without user and password
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)  # headers for its origin only
    tls: ssl.SSLContext | None = None
    allow_private: bool = False
    silence_s: float = 12.0  # longest wait for a connection or for the next bytes


class HttpResponse:
    """The response at the end of the redirects. Always `finish` it: that gives the connection back."""

    def __init__(self, raw: Any, url: str, where: str) -> None:
        self.url = url
        self.where = where  # for messages: method and URL, without the query
        self.status: int = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self._raw = raw  # of urllib3 1.26 or 2.x, whose types differ
        # The standard library's response: urllib3's own readinto copies (measured: 1.08 ms for 1 MiB
        # through .data, 0.62 this way), and it waits until the buffer is full, deaf to a deadline.
        self._body = raw._fp

    @property
    def says_its_end(self) -> bool:
        """Whether a body without a length ends with a mark, and not just with the connection."""
        return bool(self._body.chunked)

    def receive_into(self, view: memoryview) -> int:
        """What one receive brought, straight into `view`; 0 at the end of the body, wherever that is."""
        try:
            if self._body.isclosed() or not len(view):
                return 0
            if self._body.chunked:
                data = self._body.read1(len(view))
                view[: len(data)] = data
                return len(data)
            return self._receive_plain(view)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise TryAgain(f"{self.where}: body broke off: {error!r}") from error

    def read_all(self, limit_bytes: int, attempts: Attempts) -> bytes:
        """The whole body. UnderStoreError beyond the limit, TryAgain when it is not all there."""
        data, piece = bytearray(), memoryview(bytearray(_PIECE_BYTES))
        announced = content_length(self.headers)
        while count := self.receive_into(piece):
            data += piece[:count]
            if len(data) > limit_bytes:
                raise UnderStoreError(f"{self.where}: body of more than {limit_bytes} bytes")
            if attempts.remaining_s <= 0:
                raise UnderStoreError(
                    f"{self.where}: no time left (option timeout_s) in the middle of its body"
                )
        if announced not in (None, len(data)):
            raise TryAgain(f"{self.where}: {len(data)} of {announced} bytes of body")
        return bytes(data)

    def finish(self) -> None:
        """Idempotent. One receive is spent on a body that nobody wants: cheaper than to connect anew."""
        if self.status not in (200, 206) or self._body.length == 0:
            with suppress(TryAgain):
                self.receive_into(memoryview(bytearray(_PIECE_BYTES)))
        if not self._body.isclosed():
            self._raw.close()
        self._raw.release_conn()

    def _receive_plain(self, view: memoryview) -> int:
        length = self._body.length  # what is left of it, counted down here as the library does
        if length is not None:
            view = view[:length]
        count: int = self._body.fp.readinto1(view)
        if length is not None:
            self._body.length = length - count
        if not count or length == count:
            self._body.close()
        return count


class HttpSession:
    """Thread-safe. Made anew after a fork, never shared with a child: sockets and locks are not."""

    def __init__(self, mount: HttpMount) -> None:
        self.budget = RetryBudget()
        self._mount = mount
        self._rule = AddressRule(mount.home.hostname or "", allow_private=mount.allow_private)
        self._pools = urllib3.PoolManager(num_pools=16, maxsize=_IDLE_CONNECTIONS, ssl_context=mount.tls)
        self._pools.pool_classes_by_scheme = {  # a documented way to have one's own connections
            "http": partial(_PlainPool, rule=self._rule),  # type: ignore[dict-item]
            "https": partial(_TlsPool, rule=self._rule),  # type: ignore[dict-item]
        }

    def send(self, method: str, url: str, headers: Mapping[str, str], attempts: Attempts) -> HttpResponse:
        """One request and the redirects it leads to; any status may come back, but no redirect.

        Raises:
            TryAgain: no response: refused, reset, silent, broken.
            PermissionError: the address or the redirect is one that this mount may not follow.
            UnderStoreError: it would be the same next time: TLS trust, endless redirects.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send_once(method, url, headers, attempts)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            response.finish()
            url = self._redirected(url, response)
        raise UnderStoreError(f"{response.where}: more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        self._pools.clear()

    def _send_once(
        self, method: str, url: str, headers: Mapping[str, str], attempts: Attempts
    ) -> HttpResponse:
        split = urlsplit(url)
        where = f"{method} {split.scheme}://{split.netloc}{split.path}"
        wait_s = max(0.001, min(self._mount.silence_s, attempts.remaining_s))
        own = self._mount.credentials if self._trusts(split) else {}
        try:
            pool = self._pools.connection_from_url(url)
            raw = pool.urlopen(
                method,
                split._replace(scheme="", netloc="", fragment="").geturl() or "/",
                headers={**_BASE_HEADERS, **own, **headers},
                retries=False,
                redirect=False,
                timeout=Timeout(connect=wait_s, read=wait_s),
                preload_content=False,
                decode_content=False,
            )
        except AddressRefused as refused:
            raise PermissionError(f"{where}: {refused}") from refused
        except SSLError as error:
            if isinstance(error.args[0] if error.args else None, ssl.SSLCertVerificationError):
                raise UnderStoreError(f"{where}: {error}") from error
            raise TryAgain(f"{where}: {error}") from error
        except HTTPError as error:
            raise TryAgain(f"{where}: {error}") from error
        return HttpResponse(raw, url, where)

    def _trusts(self, url: SplitResult) -> bool:
        """Whether credentials may go there: the mount's own origin, or the same host's https."""
        home, there = origin(self._mount.home), origin(url)
        return there == home or (home[0] == "http" and there == ("https", home[1], 443) and home[2] == 80)

    def _redirected(self, url: str, response: HttpResponse) -> str:
        # http.client reads headers as Latin-1; what is not ASCII was UTF-8 most of the time
        location = quote(response.headers["Location"].strip().encode("latin-1"), safe=punctuation)
        try:
            target = urlsplit(urljoin(url, location))
            target_port = target.port
        except ValueError as error:
            raise UnderStoreError(f"{response.where}: redirects to no URL: {error}") from error
        if target.scheme not in _DEFAULT_PORTS or not target.hostname:
            raise PermissionError(f"{response.where}: redirects to {target.scheme or 'nowhere'}:")
        if target.scheme == "http" and urlsplit(url).scheme == "https":
            raise PermissionError(f"{response.where}: redirects from https to http://{target.hostname}")
        host = f"[{target.hostname}]" if ":" in target.hostname else target.hostname
        port = f":{target_port}" if target_port is not None else ""
        return target._replace(netloc=host + port, fragment="").geturl()  # no user and password of theirs


class _PlainConnection(HTTPConnection):
    def __init__(self, *args: Any, rule: AddressRule, **more: Any) -> None:
        super().__init__(*args, **more)
        self._rule = rule

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._rule)


class _TlsConnection(HTTPSConnection):
    def __init__(self, *args: Any, rule: AddressRule, **more: Any) -> None:
        super().__init__(*args, **more)
        self._rule = rule

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._rule)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _connect(connection: HTTPConnection, rule: AddressRule) -> socket.socket:
    """Connects to an address that was judged itself, so that nothing can change between check and use."""
    host = connection.host.strip("[]")
    try:
        found = socket.getaddrinfo(host, connection.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        raise NewConnectionError(connection, f"cannot resolve {host}: {error}") from error
    allowed = [entry for entry in found if rule.allows(host, str(entry[4][0]))]
    if not allowed:
        raise AddressRefused(rule.refusal(host, str(found[0][4][0])))
    assert connection.timeout is not None  # `_send_once` sets it
    wait_s = connection.timeout / len(allowed)  # of each: one that is dead must not take the time of all
    failure: OSError | None = None
    for family, kind, protocol, _, address in allowed:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(wait_s)
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            sock.connect(address)
            sock.settimeout(connection.timeout)  # for the handshake of TLS
        except OSError as error:
            sock.close()
            failure = error
        else:
            rule.connected(host, str(address[0]))
            return sock
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, f"connecting to {host} took over {connection.timeout} s")
    raise NewConnectionError(connection, f"cannot connect to {host}: {failure}")
