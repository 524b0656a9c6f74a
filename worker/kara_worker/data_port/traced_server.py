"""The data port with spans. A class of its own, so that requests without them pay nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kara_worker.data_port.server import PageServer
from kara_worker.http.request import Request

if TYPE_CHECKING:
    from kara_cache.tracing.request_spans import RequestSpans


class TracedServer(PageServer):
    """Requests with a trace context never go the fast way, so all of them come here."""

    def __init__(self, *parts: Any, spans: RequestSpans, **more: Any) -> None:  # Any: as PageServer has them
        super().__init__(*parts, **more)
        self._spans = spans

    @classmethod
    def of(cls, worker: str, stack: contextlib.AsyncExitStack) -> Callable[..., PageServer]:
        """Makes servers whose spans leave before `stack` ends. ModuleNotFoundError without OpenTelemetry."""
        from kara_cache.tracing.request_spans import RequestSpans

        spans = RequestSpans(worker)
        stack.callback(spans.close)
        return partial(cls, spans=spans)

    async def handle(self, request: Request) -> None:
        with self._spans.around(request.method, request.path, request.headers):
            await super().handle(request)
