"""Spans of reads, for the tracer that the program has set up: some of all reads, and those that were slow."""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import kara_cache
from kara_cache.read_stages import STAGES

READ = "kara.read"


class ReadSpans:
    """Thread-safe: a race costs a span more or less.

    A span that is sampled when its read begins is told to the worker (W3C trace context), so that the
    worker's own span is below it. One of a read that turned out to be slow is made afterwards.
    """

    def __init__(self, part: float, slow_s: float | None, tracer: Tracer | None = None) -> None:
        """`part` of all reads get a span, evenly; and all that took `slow_s` or longer."""
        self._part = part
        self._slow_s = slow_s
        self._tracer = tracer or trace.get_tracer("kara_cache", kara_cache.__version__)
        self._turn = 0.0
        self._context = TraceContextTextMapPropagator()

    def begin(self) -> Span | None:
        """A span of the read that begins now, if it is one of those."""
        self._turn += self._part
        if self._turn < 1.0:
            return None
        self._turn -= 1.0
        return self._tracer.start_span(READ, kind=SpanKind.CLIENT)

    def fields(self, span: Span) -> bytes:
        """Header lines for the worker; none if whoever samples traces left this one out."""
        if not span.is_recording():
            return b""
        carrier: dict[str, str] = {}
        self._context.inject(carrier, trace.set_span_in_context(span))
        return "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("latin-1")

    def is_slow(self, seconds: float) -> bool:
        return self._slow_s is not None and seconds >= self._slow_s

    def end(
        self,
        span: Span | None,
        seconds: float,
        attributes: Mapping[str, str | int],
        stages: Mapping[str, float],
        error: BaseException | None,
    ) -> None:
        """Ends `span`, or makes one of a slow read. A stage is an event at its end, in the usual order."""
        now_ns = time.time_ns()
        began_ns = now_ns - int(seconds * 1e9)
        if span is None:
            span = self._tracer.start_span(READ, kind=SpanKind.CLIENT, start_time=began_ns)
        span.set_attributes({f"kara.{name}": value for name, value in attributes.items()})
        at = began_ns
        for name in STAGES:
            stage_s = stages.get(name, 0.0)
            if stage_s > 0:
                at += int(stage_s * 1e9)
                span.add_event(name, {"kara.seconds": stage_s}, timestamp=min(at, now_ns))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, str(error)))
            span.record_exception(error)
        span.end(end_time=now_ns)
