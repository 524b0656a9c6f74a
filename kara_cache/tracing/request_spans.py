"""Spans of requests to a worker that came with a trace context, sent where the OTEL_ variables say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import kara_cache

_FIELDS = ("traceparent", "tracestate")


class RequestSpans:
    """One for a process. Nothing is sent unless a client asks for it; spans leave in a thread, in batches."""

    def __init__(self, worker: str) -> None:
        resource = Resource.create({"service.name": "kara-worker", "service.instance.id": worker})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("kara_worker", kara_cache.__version__)
        self._context = TraceContextTextMapPropagator()

    @contextmanager
    def around(self, method: str, path: str, fields: Mapping[str, str]) -> Iterator[None]:
        """A span below the caller's, from here to the end of the block; none without a trace context."""
        if "traceparent" not in fields:
            yield
            return
        carrier = {name: fields[name] for name in _FIELDS if name in fields}
        span = self._tracer.start_span(
            f"kara.worker {method} {path}", self._context.extract(carrier), SpanKind.SERVER
        )
        try:
            yield
        except BaseException as exc:
            span.set_status(Status(StatusCode.ERROR, str(exc)))
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Sends what is left; bounded by OTEL_BSP_EXPORT_TIMEOUT."""
        self._provider.shutdown()
