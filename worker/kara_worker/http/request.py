"""A request as an application sees it, and the way its answer goes out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote

from kara_cache.errors import FormatError
from kara_cache.wire import encode_error
from kara_worker.http.body import BodyDecoder
from kara_worker.http.output import Item, Output

log = logging.getLogger(__name__)

_SIGN_OF_LIFE_S = 1.0
_PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
_Result = TypeVar("_Result")

REASONS = {
    200: "OK", 202: "Accepted", 204: "No Content", 206: "Partial Content", 307: "Temporary Redirect",
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    409: "Conflict", 412: "Precondition Failed", 413: "Content Too Large", 416: "Range Not Satisfiable",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable",
}  # fmt: skip


class RequestConnection(Protocol):
    """What a request needs of its connection."""

    output: Output
    local: bool  # a unix socket whose peer has our uid

    def send(self, *items: Item) -> bool: ...

    async def drain(self) -> None: ...

    async def next_body(self) -> bytes | None: ...


class Request:
    """One request; the answer goes through it as well."""

    def __init__(self, connection: RequestConnection, head: bytes) -> None:
        line, _, fields = head.partition(b"\r\n")
        try:
            method, target, protocol = line.decode("ascii").split(" ")
        except (ValueError, UnicodeDecodeError) as exc:
            raise FormatError(f"request line {line[:80]!r}") from exc
        if protocol not in ("HTTP/1.1", "HTTP/1.0"):
            raise FormatError(f"protocol {protocol[:20]!r}, expected HTTP/1.1")
        raw_path, _, raw_query = target.partition("?")
        self.connection = connection
        self.method = method
        self.target = target
        self.path = unquote(raw_path, errors="strict") if "%" in raw_path else raw_path
        self.raw_query = raw_query
        self.headers = _parse_fields(fields)
        self.keep_alive = protocol == "HTTP/1.1" and self.headers.get("connection", "").lower() != "close"
        self.started = False
        self._chunked = False
        self._continue = self.headers.get("expect", "").lower() == "100-continue"
        self._query: dict[str, str] | None = None

    @property
    def query(self) -> dict[str, str]:
        """Decoded; a repeated key keeps its last value; "+" stays a plus, as S3 keys need it."""
        if self._query is None:
            plus_safe = self.raw_query.replace("+", "%2B")
            try:
                pairs = parse_qsl(plus_safe, keep_blank_values=True, errors="strict")
            except UnicodeDecodeError as exc:
                raise ValueError(f"query is not UTF-8: {exc.reason}") from exc
            self._query = dict(pairs)
        return self._query

    async def body(self) -> AsyncIterator[bytes]:
        """The content as it arrives; ConnectionError when the peer goes away inside it."""
        if self._continue:
            self._continue = False
            self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while (piece := await self.connection.next_body()) is not None:
            yield piece

    async def body_bytes(self, limit: int) -> bytes:
        """All of it, at most `limit` bytes (ValueError beyond)."""
        parts = bytearray()
        async for piece in self.body():
            parts += piece
            if len(parts) > limit:
                raise ValueError(f"request body of more than {limit} bytes")
        return bytes(parts)

    async def respond(
        self, status: int, body: bytes = b"", *, content_type: str = "", headers: Iterable[str] = ()
    ) -> None:
        """A whole answer. HEAD gets the head only."""
        fields = [*headers, f"Content-Length: {len(body)}"]
        if content_type:
            fields.append(f"Content-Type: {content_type}")
        head = self._head(status, fields)
        await self.write(head, *((body,) if body and self.method != "HEAD" else ()))

    async def respond_json(self, document: Any, status: int = 200) -> None:
        await self.respond(status, json.dumps(document).encode(), content_type="application/json")

    async def respond_error(self, error: BaseException) -> None:
        status, document = encode_error(error)
        if status == 500:
            log.error("%s %s failed", self.method, self.path, exc_info=error)
        await self.respond_json(document, status)

    async def start(self, *, length: int | None, headers: Iterable[str] = (), status: int = 200) -> None:
        """The head of an answer whose body follows by `write`; chunked when the length is not known."""
        self._chunked = length is None
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        await self.write(self._head(status, [*headers, framing]))

    async def write(self, *items: Item) -> None:
        """Sends and waits until the peer has taken it."""
        if not self.connection.send(*items):
            await self.connection.drain()

    async def sign_of_life(self) -> None:
        """Before the answer: that somebody works on it."""
        await self.write(_PROCESSING)

    async def alive_during(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """The task of `work`, done; signs of life go out meanwhile. It is cancelled with its waiter."""
        task = asyncio.get_running_loop().create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=_SIGN_OF_LIFE_S))[0]:
                await self.sign_of_life()
        finally:
            if not task.done():
                task.cancel()
        return task

    async def write_chunk(self, data: bytes | memoryview) -> None:
        """One chunk of a body started without a length."""
        if len(data):
            await self.write(b"%x\r\n" % len(data), data, b"\r\n")

    async def finish(self, trailers: Iterable[str] = ()) -> None:
        """Ends a chunked body."""
        await self.write(b"0\r\n" + "".join(f"{line}\r\n" for line in trailers).encode() + b"\r\n")

    def _head(self, status: int, fields: Iterable[str]) -> bytes:
        self.started = True
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", *fields]
        if not self.keep_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _parse_fields(raw: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in raw.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise FormatError(f"header line {line[:80]!r}")
        key = name.decode("latin-1").lower()
        if key in ("content-length", "transfer-encoding") and key in fields:
            raise FormatError(f"repeated header {key!r}")  # request smuggling, RFC 9112 section 11.2
        fields[key] = value.strip().decode("latin-1")
    return fields


def body_decoder(request: Request) -> BodyDecoder | None:
    coding, length = request.headers.get("transfer-encoding"), request.headers.get("content-length")
    if coding is not None:
        if length is not None or coding.lower() != "chunked":
            raise FormatError(f"Transfer-Encoding {coding!r} with Content-Length {length!r}")
        return BodyDecoder(length=None)
    if length is None or length == "0":
        return None
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise FormatError(f"Content-Length {length[:32]!r}")
    return BodyDecoder(length=int(length))
