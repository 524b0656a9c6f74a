"""Reads with spans. A class of its own, so that reads without them pay nothing."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from kara_cache.errors import ConfigError
from kara_cache.read_stages import stages_of
from kara_cache.reading.file_reads import FileReads, ReadParts, _Part
from kara_cache.transport.response import stages_told
from kara_cache.transport.worker_client import WorkerClient

if TYPE_CHECKING:
    from kara_cache.tracing.read_spans import ReadSpans


class TracedReads(FileReads):
    """One span for each stripe of a read that asks a worker or the store. Pages of this host have none:
    they cost microseconds, and a span costs more."""

    def __init__(self, parts: ReadParts, spans: ReadSpans) -> None:
        super().__init__(parts)
        self._spans = spans

    def _read_part(self, part: _Part, stripe: int) -> None:
        span = self._spans.begin()
        if span is not None:
            part.marks.trace = self._spans.fields(span)
        error: BaseException | None = None
        try:
            super()._read_part(part, stripe)
        except BaseException as exc:
            error = exc
            raise
        finally:
            seconds = monotonic() - part.began
            if span is not None or self._spans.is_slow(seconds):
                marks, detour_s = part.marks, part.asked - part.began
                if marks.worker is None and marks.complete:
                    marks.worker = stages_told(marks.fields)
                    marks.answer_s = marks.complete - part.asked - marks.connect_s
                    marks.verify_s = part.began + seconds - marks.complete
                facts: dict[str, str | int] = {
                    "path": part.file.path,
                    "start": part.start,
                    "length": len(part.view),
                }
                if error is None:
                    facts["worker"] = marks.answered or "store"
                stages = stages_of(marks, total_s=seconds, detour_s=detour_s)
                self._spans.end(span, seconds, facts, stages, error)

    def _ask(self, worker: WorkerClient, part: _Part, *, keep: bool) -> None:
        super()._ask(worker, part, keep=keep)
        part.marks.answered = worker.id


def traced_or_plain(parts: ReadParts, trace: float, trace_slow_s: float | None) -> FileReads:
    """With spans of a part of the reads and of those that took so long, where either is asked for.

    Raises ConfigError without OpenTelemetry.
    """
    if not trace and trace_slow_s is None:
        return FileReads(parts)
    try:
        from kara_cache.tracing.read_spans import ReadSpans
    except ModuleNotFoundError as exc:
        what = f"trace_reads and trace_slow_s need {exc.name}: pip install 'kara-cache[otel]'"
        raise ConfigError(what) from exc
    return TracedReads(parts, ReadSpans(trace, trace_slow_s))
