"""The admin port: health, metrics, status. Apart from data, so that it can be open to other networks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from kara_worker.http.request import Request
from kara_worker.http.server import Connection

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_HTML = "text/html; charset=utf-8"
# The page runs what is in it and asks nobody but this port.
_POLICY = (
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)


class AdminServer:
    """Implements `Application`. Shows no options and no addresses of stores; paths only if told to."""

    def __init__(
        self,
        *,
        ready: Callable[[], str],
        metrics: Callable[[], bytes],
        status: Callable[[], dict[str, Any]],
        cluster: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        """`ready` returns "" or why this worker should get no new readers; `cluster` is for the page."""
        self._ready = ready
        self._metrics = metrics
        self._status = status
        self._cluster = cluster
        self._page = resources.files("kara_worker").joinpath("status.html").read_bytes()

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        return False

    async def handle(self, request: Request) -> None:
        if request.method not in ("GET", "HEAD"):
            await request.respond_json({"error": "value", "message": "GET only"}, 405)
        elif request.path == "/healthz":
            await request.respond(200, b"ok\n", content_type=_TEXT)
        elif request.path == "/readyz":
            reason = self._ready()
            await request.respond(503 if reason else 200, f"{reason or 'ok'}\n".encode(), content_type=_TEXT)
        elif request.path == "/metrics":
            await request.respond(200, self._metrics(), content_type=_TEXT)
        elif request.path == "/" and "text/html" in request.headers.get("accept", ""):
            await request.respond(200, self._page, content_type=_HTML, headers=[_POLICY])
        elif request.path == "/":
            await request.respond_json(self._status())
        elif request.path == "/status.json":
            await request.respond_json(await self._cluster())
        else:
            message = "/ /status.json /healthz /readyz /metrics"
            await request.respond_json({"error": "not_found", "message": message}, 404)
