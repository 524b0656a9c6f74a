"""The HTTP side of the test OSS server: one request in, one answer out, spoiled where a test said so."""

from __future__ import annotations

import base64
import socket
import struct
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, unquote
from uuid import uuid4

from kara_worker.testing.oss_answers import Answer, answer_request, refusal
from kara_worker.testing.oss_faults import Fault, LoggedRequest
from kara_worker.testing.oss_objects import OssRefused
from kara_worker.testing.oss_signature import SignatureRefused, SignedRequest, check_signature

if TYPE_CHECKING:
    from kara_worker.testing.oss_server import OssListener, OssServer

_ONE_SEGMENT = 16 << 10  # up to here head and body leave in one send
_HONEST = Fault()


class OssRequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # the server's type is fixed by OssListener, the base class only promises a socketserver
        site = cast("OssListener", self.server).site
        request = self._parsed()
        body = self._body()
        fault = site.faults.take(request.method, request.key) or _HONEST
        if fault.status is not None:
            headers = {"Retry-After": str(fault.retry_after_s)} if fault.retry_after_s is not None else {}
            answer = refusal(OssRefused(fault.status, fault.code, "scripted fault", headers), uuid4().hex)
        else:
            answer = self._carried_out(site, request, body, fault)
        if fault.delay_s:
            site.closing.wait(fault.delay_s)
        self._send(site, request, answer, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """The request log has it; nothing on stderr."""

    def _parsed(self) -> SignedRequest:
        raw_path, _, query = self.path.partition("?")
        bucket, _, key = raw_path.lstrip("/").partition("/")
        return SignedRequest(
            method=self.command,
            bucket=unquote(bucket),
            key=unquote(key),
            parameters=dict(parse_qsl(query, keep_blank_values=True)),
            headers={name.lower(): value.strip() for name, value in self.headers.items()},
        )

    def _body(self) -> bytearray:
        body = bytearray(int(self.headers.get("Content-Length") or 0))
        view = memoryview(body)
        got = 0
        while got < len(body):
            count = self.rfile.readinto(view[got:])
            if not count:
                raise ConnectionResetError(f"request body ended after {got} of {len(body)} bytes")
            got += count
        return body

    def _carried_out(self, site: OssServer, request: SignedRequest, body: bytearray, fault: Fault) -> Answer:
        request_id = uuid4().hex.upper()[:24]
        try:
            anonymous = "authorization" not in request.headers and request.method in ("GET", "HEAD")
            if not (anonymous and site.objects.is_public(request.bucket)):
                check_signature(request, site.credentials, site.clock(), site.region)
            if not site.check_if_match:
                request = SignedRequest(
                    request.method,
                    request.bucket,
                    request.key,
                    request.parameters,
                    {name: value for name, value in request.headers.items() if name != "if-match"},
                )
            answer = answer_request(site.objects, request, body, fault)
        except SignatureRefused as exc:
            return refusal(OssRefused(403, exc.code, str(exc)), request_id, exc.string_to_sign)
        except OssRefused as exc:
            return refusal(exc, request_id)
        answer.headers["x-oss-request-id"] = request_id
        return answer

    def _send(self, site: OssServer, request: SignedRequest, answer: Answer, fault: Fault) -> None:
        head, body = self._head(answer, fault), memoryview(answer.body)
        if request.method == "HEAD":
            body = body[:0]
        if fault.flip:
            body = memoryview(bytes(byte ^ 0xFF for byte in body))
        if fault.lost:
            head, body = b"", body[:0]
        elif fault.cut_after is not None:
            body = body[: fault.cut_after]
        query = self.path.partition("?")[2]
        site.requests.add(
            LoggedRequest(
                request.method,
                request.bucket,
                request.key,
                query,
                request.headers.get("range", ""),
                answer.status,
                len(body),
                site.clock(),
            )
        )
        if len(body) <= _ONE_SEGMENT:
            self.connection.sendall(head + body)
        else:
            self.connection.sendall(head)
            self.connection.sendall(body)
        if fault.reset or fault.lost:
            self._reset()
        if fault.reset or fault.lost or fault.cut_after is not None:
            self.close_connection = True

    def _head(self, answer: Answer, fault: Fault) -> bytes:
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            "Server: AliyunOSS",
            f"Date: {formatdate(usegmt=True)}",
        ]
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        if self.command == "HEAD" and answer.status >= 400:  # where a body cannot say why
            headers |= {"x-oss-err": base64.b64encode(answer.body).decode(), "Content-Length": "0"}
        if fault.drop_etag:
            headers.pop("ETag", None)
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _reset(self) -> None:
        """Ends with RST: the peer sees "connection reset", not the end of the stream."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
