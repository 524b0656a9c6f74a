"""The admin port: health, readiness, metrics. Apart from data, so that it can be open to other networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kara_worker.http_request import Request
from kara_worker.http_server import Connection

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class AdminServer:
    """Implements `Application`. Shows no paths, no options, no addresses of stores."""

    def __init__(
        self,
        *,
        ready: Callable[[], str],
        metrics: Callable[[], bytes],
        status: Callable[[], dict[str, Any]],
    ) -> None:
        """`ready` returns "" or why this worker should get no new readers."""
        self._ready = ready
        self._metrics = metrics
        self._status = status

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
        elif request.path == "/":
            await request.respond_json(self._status())
        else:
            await request.respond_json({"error": "not_found", "message": "/healthz /readyz /metrics"}, 404)
