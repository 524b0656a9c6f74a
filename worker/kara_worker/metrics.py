"""What a worker counts. Identities hold at every moment between two requests:

    page reads      = hits + misses + joins      (join: waited for another reader's fill)
    read bytes      = cache + store              (bytes sent, by where their page was)
    requests        = ok + client_error + error, for each method
    store requests  = ok + answer + error        (answer: not found, no permission, changed version)

Hot counters are plain integers: a prometheus_client counter costs 0.8 us, a request 10. The library
still does all exposition, through the collector below. The Alluxio names stand beside ours, so that
existing dashboards keep working.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from kara_cache.errors import CacheError, UnderStoreError
from kara_worker.hot_paths import HotPaths
from kara_worker.pages.page_store import StoreStats

_ANSWERS = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    CacheError,
    ValueError,
)

DAMAGES = ("header", "data", "identity", "truncated")  # what `PageDamaged.where` says
# seconds; Alluxio's 10, 40, 160, 640 ms are among them, a cache hit is far below the first of those
LATENCY_BOUNDS_S = (
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 40e-3, 160e-3, 640e-3, 2.5, 10.0, 60.0,
)  # fmt: skip


class Latency:
    """One histogram cell: counts for each bucket, the last one without bound."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def cumulative(self, scale: float) -> list[tuple[str, float]]:
        running, rows = 0, []
        for bound, count in zip(LATENCY_BOUNDS_S, self.counts, strict=False):
            running += count
            rows.append((f"{bound * scale:g}", float(running)))
        rows.append(("+Inf", float(running + self.counts[-1])))
        return rows


class Served:
    """Bytes of one mount that were sent to readers, by where they were."""

    __slots__ = ("cache_bytes", "store_bytes")

    def __init__(self) -> None:
        self.cache_bytes = 0
        self.store_bytes = 0


class WorkerMetrics:
    """Event loop only, except what is marked: store threads count under a lock."""

    def __init__(self) -> None:
        self.page_hits = 0
        self.page_misses = 0
        self.page_joins = 0
        self.served: dict[str, Served] = defaultdict(Served)  # by mount
        self.fills = 0
        self.fill_errors: dict[str, int] = defaultdict(int)
        self.rejections: dict[str, int] = defaultdict(int)
        self.requests: dict[tuple[str, str], Latency] = defaultdict(Latency)
        self.hot_paths = HotPaths()
        self.hot_read = self.requests["read", "ok"]  # found once, used for every hit
        self._lock = Lock()  # guards the two below, which store threads write
        self._store_requests: dict[tuple[str, str, str], Latency] = defaultdict(Latency)
        self._store_bytes: dict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def store_request(self, mount: str, verb: str) -> Iterator[None]:
        """Any thread. Counts one call to an under store by its outcome."""
        began = time.perf_counter()
        try:
            yield
        except BaseException as exc:
            self._note(mount, verb, time.perf_counter() - began, exc)
            raise
        self._note(mount, verb, time.perf_counter() - began, None)

    def note_store_read(self, mount: str, seconds: float, error: Exception | None) -> None:
        """Any thread. Counts a read that another process has made."""
        self._note(mount, "read", seconds, error)

    def _note(self, mount: str, verb: str, seconds: float, error: BaseException | None) -> None:
        result = "ok" if error is None else "answer" if isinstance(error, _ANSWERS) else "error"
        with self._lock:
            self._store_requests[mount, verb, result].observe(seconds)

    def store_bytes(self, mount: str, count: int) -> None:
        """Any thread."""
        with self._lock:
            self._store_bytes[mount] += count

    def count_fill_error(self, exc: BaseException) -> None:
        if isinstance(exc, CacheError):
            reason = exc.reason
        elif isinstance(exc, UnderStoreError):
            reason = "store_error"
        elif isinstance(exc, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
            reason = "answer"
        else:
            reason = "internal"
        self.fill_errors[reason] += 1

    def count_rejection(self, reason: str, pages: int) -> None:
        self.rejections[reason] += pages

    def observe(self, method: str, result: str, seconds: float) -> None:
        self.requests[method, result].observe(seconds)

    def totals(self) -> dict[str, Any]:
        """The few numbers that a status page needs."""
        with self._lock:
            fetched = sum(self._store_bytes.values())
        return {
            "page_reads": {"hit": self.page_hits, "miss": self.page_misses, "join": self.page_joins},
            "read_bytes": {
                "cache": sum(served.cache_bytes for served in self.served.values()),
                "store": sum(served.store_bytes for served in self.served.values()),
            },
            "store_read_bytes": fetched,
        }

    def mean_store_seconds(self, mount: str) -> float:
        """Of the mount's reads that were answered; 0.0 before the first."""
        with self._lock:
            cell = self._store_requests.get((mount, "read", "ok"))
            count = sum(cell.counts) if cell is not None else 0
            return cell.total_s / count if cell is not None and count else 0.0

    def store_rows(self) -> tuple[dict[tuple[str, str, str], tuple[int, float]], dict[str, int]]:
        """(mount, verb, result) -> (count, seconds), and mount -> bytes read."""
        with self._lock:
            rows = {key: (sum(cell.counts), cell.total_s) for key, cell in self._store_requests.items()}
            return rows, dict(self._store_bytes)


class WorkerCollector(Collector):
    """Renders a worker's state for Prometheus; labels are bounded (no paths)."""

    def __init__(
        self,
        metrics: WorkerMetrics,
        *,
        page_stats: Callable[[], StoreStats],
        gauges: Callable[[], dict[str, float]],
        counters: Callable[[], dict[str, dict[str, int]]],
        clients: Callable[[], Iterable[Metric]],
    ) -> None:
        self._metrics = metrics
        self._page_stats = page_stats
        self._gauges = gauges
        self._counters = counters
        self._clients = clients

    def exposition(self) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        yield from self._pages()
        yield from self._stores()
        yield from self._page_store()
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"kara_worker_{name}", name.replace("_", " "), value=value)
        for name, by_label in self._counters().items():
            yield _counter(f"kara_worker_{name}", name.replace("_", " "), "kind", by_label)
        yield from self._clients()

    def _requests(self) -> Iterable[Metric]:
        totals = CounterMetricFamily("kara_worker_requests", "Requests answered", labels=("method", "result"))
        seconds = HistogramMetricFamily(
            "kara_worker_request_seconds", "Time from request head to last byte", labels=("method", "result")
        )
        alluxio_ms = HistogramMetricFamily(
            "alluxio_http_server_call_latency_ms", "As Alluxio names it", labels=("method", "success")
        )
        alluxio_total = CounterMetricFamily(
            "alluxio_http_server_result", "As Alluxio names it", labels=("method", "state")
        )
        for (method, result), cell in sorted(self._metrics.requests.items()):
            count, success = sum(cell.counts), "true" if result == "ok" else "false"
            totals.add_metric((method, result), count)
            seconds.add_metric((method, result), cell.cumulative(1.0), cell.total_s)
            if result != "client_error":
                alluxio_ms.add_metric((method, success), cell.cumulative(1e3), cell.total_s * 1e3)
            alluxio_total.add_metric((method, result), count)
        yield from (totals, seconds, alluxio_ms, alluxio_total)

    def _pages(self) -> Iterable[Metric]:
        m = self._metrics
        reads = {"hit": m.page_hits, "miss": m.page_misses, "join": m.page_joins}
        yield _counter("kara_worker_page_reads", "Pages read, by where they were", "result", reads)
        sent = CounterMetricFamily(
            "kara_worker_read_bytes", "Bytes sent to readers", labels=("mount", "source")
        )
        for mount, served in sorted(m.served.items()):
            sent.add_metric((mount, "cache"), served.cache_bytes)
            sent.add_metric((mount, "store"), served.store_bytes)
        yield sent
        yield CounterMetricFamily("kara_worker_fills", "Store reads that filled pages", value=m.fills)
        yield _counter("kara_worker_fill_errors", "Store reads that failed", "reason", m.fill_errors)

    def _stores(self) -> Iterable[Metric]:
        rows, read_bytes = self._metrics.store_rows()
        requests = CounterMetricFamily(
            "kara_worker_store_requests", "Calls to under stores", labels=("mount", "verb", "result")
        )
        seconds = CounterMetricFamily(
            "kara_worker_store_seconds", "Time in under stores", labels=("mount", "verb", "result")
        )
        for key, (count, total_s) in sorted(rows.items()):
            requests.add_metric(key, count)
            seconds.add_metric(key, total_s)
        yield from (requests, seconds)
        yield _counter("kara_worker_store_read_bytes", "Bytes fetched from under stores", "mount", read_bytes)

    def _page_store(self) -> Iterable[Metric]:
        stats = self._page_stats()
        for name, value in (
            ("pages", stats.pages), ("bytes", stats.bytes), ("capacity_bytes", stats.capacity_bytes)
        ):  # fmt: skip
            yield GaugeMetricFamily(f"kara_worker_page_store_{name}", f"Page store: {name}", value=value)
        yield _counter("kara_worker_evictions", "Pages that left the store", "reason", stats.evictions)
        rejections = dict(stats.rejections)
        for reason, count in self._metrics.rejections.items():
            rejections[reason] = rejections.get(reason, 0) + count
        yield _counter("kara_worker_rejections", "Pages not admitted", "reason", rejections)
        # From zero on: Prometheus sees no increase in a series that begins with its first event.
        corrupt = {**dict.fromkeys(DAMAGES, 0), **stats.corrupt}
        yield _counter("kara_worker_corrupt_pages", "Pages found wrong", "where", corrupt)
        yield CounterMetricFamily("kara_worker_disk_errors", "Failed disk calls", value=stats.disk_errors)


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family
