"""The transport below the OSS store: requests that oss2 has signed, and reads, which go their own way."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol
from urllib.parse import SplitResult, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from kara_cache.ufs.lines import Answer, Lines

_HEADERS = ("User-Agent: kara-cache", "Accept-Encoding: identity")
_ERROR_BYTES = 64 << 10


class SessionOptions(Protocol):
    """The part of the store's options that is about connections."""

    @property
    def ca_file(self) -> str: ...

    @property
    def connect_timeout_s(self) -> float: ...

    @property
    def read_timeout_s(self) -> float: ...

    @property
    def max_connections(self) -> int: ...


class OssSession:
    """The transport oss2 sends through, on urllib3: half the time of requests at 4 KiB (measured).

    Follows no redirects and reads no .netrc, whose password would replace the signature. Answers are
    read to their end here, except the bytes of objects, so that a connection breaks in one place.
    """

    def __init__(
        self,
        endpoint: str,
        options: SessionOptions,
        *,
        broken: Callable[[Exception], Exception],
        refused: Callable[[OssResponse], Exception],
    ) -> None:
        """`broken` and `refused` make what oss2 raises where no answer came, and for one that is an error."""
        scheme, host = endpoint.split("://")
        timeout = urllib3.Timeout(connect=options.connect_timeout_s, read=options.read_timeout_s)
        proxy = None if proxy_bypass(host) else getproxies().get(scheme)
        self._connect_s, self._silence_s = options.connect_timeout_s, options.read_timeout_s
        self._tls = ssl.create_default_context(cafile=options.ca_file or None) if scheme == "https" else None
        self.is_direct = proxy is None  # whether `ask` can be used
        self._lines: Lines | None = None
        self._broken = broken
        self._refused = refused
        self._keep = options.max_connections
        common: dict[str, Any] = {
            "maxsize": options.max_connections,
            "timeout": timeout,
            "retries": False,
            "cert_reqs": "CERT_REQUIRED",
            "ca_certs": options.ca_file or None,  # None: those of the system
        }
        self._pool = urllib3.ProxyManager(proxy, **common) if proxy else urllib3.PoolManager(**common)

    def do_request(self, request: Any, timeout: float) -> OssResponse:
        """`request` is oss2's, `timeout` its one number; ours are set apart for connecting and reading."""
        query = urlencode(request.params)
        try:
            response = self._pool.urlopen(
                request.method,
                f"{request.url}?{query}" if query else request.url,
                body=request.data,
                headers={name: value for name, value in request.headers.items() if value is not None},
                redirect=False,
                preload_content=False,
                decode_content=False,
                enforce_content_length=True,
            )
            streams = "range" in request.headers and response.status in (200, 206)
            return OssResponse(response, b"" if streams else response.read())
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._broken(error) from error

    def ask(self, method: str, netloc: str, target: str, head: Sequence[str]) -> Answer:
        """What is answered to GET or HEAD of an object, its body still to be read.

        Raises what `broken` and `refused` make.
        """
        lines = self._lines
        if lines is None:
            dial = partial(_dial, urlsplit(f"//{netloc}"), self._tls)
            lines = self._lines = Lines(dial, keep=self._keep)
        request = "\r\n".join((f"{method} {target} HTTP/1.1", f"Host: {netloc}", *_HEADERS, *head, "\r\n"))
        try:
            answer = lines.ask(
                request.encode("latin-1"),
                connect_s=self._connect_s,
                silence_s=self._silence_s,
                has_body=method != "HEAD",
            )
            if answer.status in (200, 206):
                return answer
            text = _error_text(answer)
        except (http.client.HTTPException, OSError) as error:
            raise self._broken(error) from error
        raise self._refused(OssResponse(answer, text))

    def close(self) -> None:
        self._pool.clear()
        if self._lines is not None:
            self._lines.close()


class OssResponse:
    """What oss2 reads of a response: status, headers, and the body unless it is streamed."""

    def __init__(self, response: urllib3.BaseHTTPResponse | Answer, body: bytes) -> None:
        self.response = response
        self.status = response.status
        self.headers = response.headers
        self.request_id = response.headers.get("x-oss-request-id", "")
        self._body = io.BytesIO(body)

    def read(self, amount: int | None = None) -> bytes:
        return self._body.read(amount)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body.readlines())


def _error_text(answer: Answer) -> bytes:
    text, piece = b"", memoryview(bytearray(_ERROR_BYTES))
    while len(text) < _ERROR_BYTES and (count := answer.receive_into(piece)):
        text += piece[:count]
    answer.finish()
    return text


def _dial(host: SplitResult, tls: ssl.SSLContext | None, wait_s: float) -> socket.socket:
    port = host.port or (443 if tls else 80)
    sock = socket.create_connection((host.hostname or "", port), wait_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if tls is None else tls.wrap_socket(sock, server_hostname=host.hostname)
    except BaseException:
        sock.close()
        raise
