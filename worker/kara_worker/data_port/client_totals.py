"""Counts that client processes hand in, summed: a training pod needs no metrics port, and what a
forked DataLoader worker counted is not lost when it exits."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from kara_cache.errors import FormatError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MAX_NAMES = 32
_MAX_LABELS = 64
_MAX_BUCKETS = 40
_RECENT = 20
# From zero on: Prometheus sees no increase in a series that begins with its first event.
FALLBACKS = (
    "refused", "reset", "timeout", "protocol", "tls", "dns", "unreachable", "busy", "corrupt", "stale",
    "internal", "store_error",
)  # fmt: skip


class ClientTotals:
    """Event loop only. Names and labels are bounded, so that no client can grow this without limit."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[str, int]] = {}
        self._latency: dict[str, tuple[tuple[float, ...], list[int], float]] = {}
        self._recent: deque[tuple[float, str, int]] = deque(maxlen=_RECENT)  # detours, when they were told

    def add(self, document: Any) -> None:
        """Adds one document of deltas (docs/protocol.md); FormatError, and nothing added, if it is bad."""
        counters, latency = self._checked(document)
        for name, by_label in counters.items():
            known = self._counters.setdefault(name, {})
            for label, delta in by_label.items():
                known[label] = known.get(label, 0) + delta
        for reason, count in counters.get("fallbacks", {}).items():
            self._recent.append((time.time(), reason, count))
        for name, (bounds, counts, total_s) in latency.items():
            _, old, old_total = self._latency.get(name, (bounds, [0] * len(counts), 0.0))
            self._latency[name] = (
                bounds,
                [a + b for a, b in zip(old, counts, strict=True)],
                old_total + total_s,
            )

    def recent_fallbacks(self) -> list[dict[str, Any]]:
        """The last detours that clients told this worker of, newest first."""
        return [{"at": at, "reason": reason, "count": count} for at, reason, count in reversed(self._recent)]

    def _checked(self, document: Any) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
        if not isinstance(document, dict):
            raise FormatError("client metrics: expected an object")
        counters, latency = document.get("counters", {}), document.get("latency", {})
        if not isinstance(counters, dict) or not isinstance(latency, dict):
            raise FormatError("client metrics: counters and latency are objects")
        _bounded({*counters, *self._counters}, _MAX_NAMES)
        for name, by_label in counters.items():
            if not isinstance(by_label, dict):
                raise FormatError(f"client metrics: {name} is not an object")
            _bounded({*by_label, *self._counters.get(name, {})}, _MAX_LABELS)
            if not all(isinstance(delta, int) and 0 <= delta < 1 << 60 for delta in by_label.values()):
                raise FormatError(f"client metrics: {name} has a delta that is not a count")
        _bounded({*latency, *self._latency}, _MAX_NAMES)
        return counters, {name: self._checked_latency(name, cell) for name, cell in latency.items()}

    def _checked_latency(self, name: str, cell: Any) -> tuple[tuple[float, ...], list[int], float]:
        try:
            bounds = tuple(float(bound) for bound in cell["bounds"])
            counts = [int(count) for count in cell["counts"]]
            total_s = float(cell["total_s"])
        except (KeyError, TypeError, ValueError) as exc:
            raise FormatError(f"client metrics: latency {name}: {exc!r}") from exc
        known = self._latency.get(name)
        if len(counts) != len(bounds) + 1 or len(counts) > _MAX_BUCKETS or (known and known[0] != bounds):
            raise FormatError(
                f"client metrics: latency {name}: {len(counts)} counts for {len(bounds)} bounds"
            )
        if min(counts) < 0 or not 0 <= total_s < 1e15:
            raise FormatError(f"client metrics: latency {name}: negative")
        return bounds, counts, total_s

    def metrics(self) -> Iterable[Metric]:
        fallbacks = {**dict.fromkeys(FALLBACKS, 0), **self._counters.get("fallbacks", {})}
        for name, by_label in sorted({**self._counters, "fallbacks": fallbacks}.items()):
            family = CounterMetricFamily(f"kara_client_{name}", f"Clients: {name}", labels=("kind",))
            for label, value in sorted(by_label.items()):
                family.add_metric((label,), value)
            yield family
        for name, (bounds, counts, total_s) in sorted(self._latency.items()):
            running, rows = 0, []
            for bound, count in zip((*(f"{b:g}" for b in bounds), "+Inf"), counts, strict=True):
                running += count
                rows.append((bound, float(running)))
            yield HistogramMetricFamily(
                f"kara_client_{name}_seconds", f"Clients: {name}", buckets=rows, sum_value=total_s
            )


def _bounded(names: Iterable[str], limit: int) -> None:
    names = list(names)
    if len(names) > limit:
        raise FormatError(f"client metrics: {len(names)} names, at most {limit}")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise FormatError(f"client metrics: name {str(name)[:40]!r}, expected {_NAME.pattern}")
