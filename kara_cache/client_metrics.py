"""What the client of one process counts, and the document in which it hands the counts to a worker.

Counters, each a number for each label:

    reads         worker + local + store + error = all. One for each stripe that `read_into` touched, or
                  each piece of a large read, and for each range of a batch
    read_bytes    worker + local + store = bytes that reached the caller
    worker_reads  hit + fill <= reads of `worker`. hit: every page was on the worker's SSD. Batches do not
                  tell and are in neither
    fallbacks     failed attempts, by the reason of the CacheError, `store_error` for a store behind a
                  worker; a read may count several and still succeed
    read_ahead    bytes: fetched = hit (up to the last byte that a reader took) + waste + what is held

Source `local` is a page of a worker on this host, read through its descriptor; `store` is the caller's
own under store; a read that needed several counts as the dearest. The histogram `read` has the seconds
of each read that is no batch, `batch` those of batches.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

LATENCY_BOUNDS_S = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
)  # fmt: skip
_COUNTERS = ("reads", "read_bytes", "worker_reads", "fallbacks", "read_ahead")
_ZEROS = (0,) * (len(LATENCY_BOUNDS_S) + 1)


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram over LATENCY_BOUNDS_S."""

    counts: tuple[int, ...] = _ZEROS  # calls up to each bound, the rest last
    total_s: float = 0.0

    def since(self, earlier: Latency) -> dict[str, Any]:
        counts = [now - before for now, before in zip(self.counts, earlier.counts, strict=True)]
        total_s = max(0.0, self.total_s - earlier.total_s)
        return {"bounds": LATENCY_BOUNDS_S, "counts": counts, "total_s": total_s} if any(counts) else {}


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """The counters at one moment."""

    reads: dict[str, int] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)
    worker_reads: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    read_ahead: dict[str, int] = field(default_factory=dict)
    read_latency: Latency = field(default_factory=Latency)
    batch_latency: Latency = field(default_factory=Latency)

    def since(self, earlier: ClientCounts) -> dict[str, Any]:
        """The document of POST /client-metrics: what was counted after `earlier`. {} for nothing."""
        counters = {}
        for name in _COUNTERS:
            before = getattr(earlier, name)
            deltas = {
                label: value - before.get(label, 0)
                for label, value in getattr(self, name).items()
                if value != before.get(label, 0)
            }
            if deltas:
                counters[name] = deltas
        read = self.read_latency.since(earlier.read_latency)
        batch = self.batch_latency.since(earlier.batch_latency)
        latency = {name: cell for name, cell in (("read", read), ("batch", batch)) if cell}
        return {"counters": counters, "latency": latency} if counters or latency else {}


class ClientMetrics:
    """Thread-safe. A forked child starts from zero, because its parent reports what came before."""

    def __init__(self) -> None:
        # Reads of pages at hand are appended here, and counted by `fold`, which whoever appends calls
        # now and then: a lock and four counters would be a tenth of such a read.
        self.local_seconds: list[float] = []  # of each read
        self.local_bytes: list[int] = []  # of each read, and of each view
        self.after_fork()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._lock = threading.Lock()  # guards all numbers
        self.local_seconds.clear()
        self.local_bytes.clear()
        self._reads = {"worker": 0, "local": 0, "store": 0, "error": 0}
        self._bytes = {"worker": 0, "local": 0, "store": 0}
        self._worker_reads = {"hit": 0, "fill": 0}
        self._fallbacks: dict[str, int] = {}
        self._read_ahead = {"fetched": 0, "hit": 0, "waste": 0}
        self._read_counts = list(_ZEROS)
        self._read_total_s = 0.0
        self._batch_counts = list(_ZEROS)
        self._batch_total_s = 0.0

    def local_read(self, count: int, seconds: float) -> None:
        """A read that needed nothing but pages of this host."""
        bucket = 0 if seconds <= LATENCY_BOUNDS_S[0] else bisect_left(LATENCY_BOUNDS_S, seconds)
        with self._lock:
            self._reads["local"] += 1
            self._bytes["local"] += count
            self._read_counts[bucket] += 1
            self._read_total_s += seconds

    def fold(self) -> None:
        """Counts what was appended to `local_seconds` and `local_bytes`."""
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        # no step but whole ones of the interpreter: what another thread appends meanwhile stays
        counts, seconds = self.local_bytes[:], self.local_seconds[:]
        del self.local_bytes[: len(counts)], self.local_seconds[: len(seconds)]
        self._reads["local"] += len(counts)
        self._bytes["local"] += sum(counts)
        self._read_total_s += sum(seconds)
        if seconds and max(seconds) <= LATENCY_BOUNDS_S[0]:
            self._read_counts[0] += len(seconds)
        else:
            for each in seconds:
                self._read_counts[bisect_left(LATENCY_BOUNDS_S, each)] += 1

    def worker_read(self, count: int, local: int, seconds: float, *, hit: bool) -> None:
        """A read of `count` bytes: the first `local` from pages of this host, the rest by a worker."""
        bucket = bisect_left(LATENCY_BOUNDS_S, seconds)
        with self._lock:
            self._reads["worker"] += 1
            self._worker_reads["hit" if hit else "fill"] += 1
            self._bytes["worker"] += count - local
            self._bytes["local"] += local
            self._read_counts[bucket] += 1
            self._read_total_s += seconds

    def store_read(self, count: int, local: int, seconds: float) -> None:
        """As `worker_read`, but the rest came from the caller's own store."""
        bucket = bisect_left(LATENCY_BOUNDS_S, seconds)
        with self._lock:
            self._reads["store"] += 1
            self._bytes["store"] += count - local
            self._bytes["local"] += local
            self._read_counts[bucket] += 1
            self._read_total_s += seconds

    def failed_read(self, seconds: float) -> None:
        bucket = bisect_left(LATENCY_BOUNDS_S, seconds)
        with self._lock:
            self._reads["error"] += 1
            self._read_counts[bucket] += 1
            self._read_total_s += seconds

    def ranges(self, source: str, ranges: int, count: int) -> None:
        """So many ranges of a batch, `count` bytes in all, came from `worker` or `local`."""
        with self._lock:
            self._reads[source] += ranges
            self._bytes[source] += count

    def batch(self, seconds: float) -> None:
        bucket = bisect_left(LATENCY_BOUNDS_S, seconds)
        with self._lock:
            self._batch_counts[bucket] += 1
            self._batch_total_s += seconds

    def fallback(self, reason: str) -> None:
        with self._lock:
            self._fallbacks[reason] = self._fallbacks.get(reason, 0) + 1

    def read_ahead(self, kind: str, count: int) -> None:
        """`count` bytes were fetched, hit or waste."""
        with self._lock:
            self._read_ahead[kind] += count

    def snapshot(self) -> ClientCounts:
        with self._lock:
            self._fold()
            return ClientCounts(
                reads=dict(self._reads),
                read_bytes=dict(self._bytes),
                worker_reads=dict(self._worker_reads),
                fallbacks=dict(self._fallbacks),
                read_ahead=dict(self._read_ahead),
                read_latency=Latency(tuple(self._read_counts), self._read_total_s),
                batch_latency=Latency(tuple(self._batch_counts), self._batch_total_s),
            )
