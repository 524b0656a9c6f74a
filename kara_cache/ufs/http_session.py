"""Requests of one process to one HTTP mount: pooled connections, checked addresses, redirects by hand."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from string import punctuation
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from kara_cache.errors import UnderStoreError
from kara_cache.ufs.address import AddressRefused, AddressRule
from kara_cache.ufs.http_head import content_length
from kara_cache.ufs.lines import Answer, Headers, Lines
from kara_cache.ufs.retry import Attempts, RetryBudget, TryAgain

MAX_REDIRECTS = 5
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_IDLE_CONNECTIONS = 64  # kept for each host; more may be open at once
_HOSTS = 16  # whose connections are kept: redirects may lead anywhere
_PIECE_BYTES = 64 << 10
_BASE_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "kara-cache"}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin(url: SplitResult) -> tuple[str, str, int]:
    """RFC 6454: who may see what was meant for whom."""
    scheme = url.scheme.lower()
    return scheme, (url.hostname or "").lower(), url.port or _DEFAULT_PORTS.get(scheme, 0)


def tls_context(ca: str, *, verify: bool) -> ssl.SSLContext:
    """Trusts the system's authorities, or only those of the PEM file `ca`. OSError if that cannot be read."""
    context = ssl.create_default_context(cafile=ca or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
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

    def __init__(self, answer: Answer, url: str, where: str) -> None:
        self.url = url
        self.where = where  # for messages: method and URL, without the query
        self.status = answer.status
        self.headers: Headers = answer.headers
        self.says_its_end = (
            answer.chunked
        )  # a body without a length ends with a mark, not with the connection
        self.finish = answer.finish
        self._receive_into = answer.receive_into

    def receive_into(self, view: memoryview) -> int:
        """What one receive brought, straight into `view`; 0 at the end of the body, wherever that is."""
        try:
            return self._receive_into(view)
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


class HttpSession:
    """Thread-safe. Made anew after a fork, never shared with a child: sockets and locks are not."""

    def __init__(self, mount: HttpMount) -> None:
        self.budget = RetryBudget()
        self._mount = mount
        self._rule = AddressRule(mount.home.hostname or "", allow_private=mount.allow_private)
        self._lines: OrderedDict[tuple[str, str, int], Lines] = OrderedDict()
        self._lock = threading.Lock()  # guards _lines

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
        with self._lock:
            known, self._lines = list(self._lines.values()), OrderedDict()
        for lines in known:
            lines.close()

    def _send_once(
        self, method: str, url: str, headers: Mapping[str, str], attempts: Attempts
    ) -> HttpResponse:
        split = urlsplit(url)
        where = f"{method} {split.scheme}://{split.netloc}{split.path}"
        wait_s = max(0.001, min(self._mount.silence_s, attempts.remaining_s))
        own = self._mount.credentials if self._trusts(split) else {}
        request = _request(method, split, {**_BASE_HEADERS, **own, **headers})
        try:
            answer = self._to(split).ask(
                request, connect_s=wait_s, silence_s=wait_s, has_body=method != "HEAD"
            )
        except AddressRefused as refused:
            raise PermissionError(f"{where}: {refused}") from refused
        except ssl.SSLCertVerificationError as error:
            raise UnderStoreError(f"{where}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(f"{where}: {type(error).__name__}: {error}") from error
        return HttpResponse(answer, url, where)

    def _to(self, url: SplitResult) -> Lines:
        there = origin(url)
        with self._lock:
            lines = self._lines.get(there)
            if lines is None:
                dial = partial(_dial, there, rule=self._rule, tls=self._mount.tls)
                lines = self._lines[there] = Lines(dial, keep=_IDLE_CONNECTIONS)
                if len(self._lines) > _HOSTS:
                    self._lines.popitem(last=False)[1].close()
            else:
                self._lines.move_to_end(there)
        return lines

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


def _request(method: str, url: SplitResult, headers: Mapping[str, str]) -> bytes:
    """Raises ValueError for what would be read as two headers, or none."""
    target = url._replace(scheme="", netloc="", fragment="").geturl() or "/"
    head = [f"{method} {target} HTTP/1.1", f"Host: {url.netloc.rpartition('@')[2]}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in head):
        raise ValueError(f"{method} {url.scheme}://{url.netloc}{url.path}: a line break in a header")
    return "\r\n".join([*head, "\r\n"]).encode("latin-1")


def _dial(
    there: tuple[str, str, int], wait_s: float, *, rule: AddressRule, tls: ssl.SSLContext | None
) -> socket.socket:
    scheme, host, port = there
    sock = _connect(host, port, wait_s, rule)
    if scheme != "https":
        return sock
    context = tls or ssl.create_default_context()  # redirected from http
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _connect(host: str, port: int, wait_s: float, rule: AddressRule) -> socket.socket:
    """Connects to an address that was judged itself, so that nothing can change between check and use."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        raise OSError(f"cannot resolve {host}: {error}") from error
    allowed = [entry for entry in found if rule.allows(host, str(entry[4][0]))]
    if not allowed:
        raise AddressRefused(rule.refusal(host, str(found[0][4][0])))
    each_s = wait_s / len(allowed)  # one that is dead must not take the time of all
    failure: OSError | None = None
    for family, kind, protocol, _, address in allowed:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(each_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            sock.settimeout(wait_s)  # for the handshake of TLS
        except OSError as error:
            sock.close()
            failure = error
        else:
            rule.connected(host, str(address[0]))
            return sock
    if isinstance(failure, TimeoutError):
        raise TimeoutError(f"connecting to {host} took over {wait_s} s") from failure
    raise OSError(f"cannot connect to {host}: {failure}") from failure
