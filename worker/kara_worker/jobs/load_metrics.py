"""What load jobs do on one worker, for dashboards. Meanings and identities stand beside the names.

kara_load_jobs_total{state}          jobs that this worker coordinated to their end
kara_load_jobs_running               jobs that it coordinates now
kara_load_takeovers_total            jobs that it took over from a worker that was gone
kara_load_requests_limit             requests to stores that may run now: what stores bear and readers leave
kara_load_pages_total{result}        fetched, present (were there already), failed: pages of batches here
kara_load_fetched_bytes_total        bytes of the pages fetched
kara_load_store_requests_total       requests to stores that fetched them
kara_load_failed_pages_total{reason} the failed ones; their sum is pages_total{result="failed"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kara_cache.load_job import LoadState
from kara_worker.jobs.batch import Failure


class LoadMetrics:
    """Pages: event loop only. Jobs: the board's thread only. Read by either."""

    def __init__(self) -> None:
        self.running: Callable[[], int] = int
        self.limit: Callable[[], int] = int
        self.takeovers = 0
        self._finished: Counter[str] = Counter({state.value: 0 for state in LoadState if state.final})
        self._pages: Counter[str] = Counter(fetched=0, present=0, failed=0)
        self._reasons: Counter[str] = Counter()
        self._bytes = 0
        self._requests = 0

    def count(self, present: int, fetched: int, bytes_fetched: int, requests: int) -> None:
        self._pages["present"] += present
        self._pages["fetched"] += fetched
        self._bytes += bytes_fetched
        self._requests += requests

    def count_failures(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            self._pages["failed"] += failure.pages
            self._reasons[failure.reason.value] += failure.pages

    def finished(self, state: LoadState) -> None:
        self._finished[state.value] += 1

    def families(self) -> Iterable[Metric]:
        yield _labelled("kara_load_jobs", "Load jobs coordinated to their end", "state", self._finished)
        yield GaugeMetricFamily("kara_load_jobs_running", "Load jobs coordinated now", value=self.running())
        yield GaugeMetricFamily("kara_load_requests_limit", "Requests that may run now", value=self.limit())
        yield CounterMetricFamily("kara_load_takeovers", "Load jobs taken over", value=self.takeovers)
        yield _labelled("kara_load_pages", "Pages of load jobs", "result", self._pages)
        yield CounterMetricFamily("kara_load_fetched_bytes", "Bytes fetched by load jobs", value=self._bytes)
        yield CounterMetricFamily(
            "kara_load_store_requests", "Store requests of load jobs", value=self._requests
        )
        yield _labelled("kara_load_failed_pages", "Pages that could not be loaded", "reason", self._reasons)


def _labelled(name: str, text: str, label: str, values: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family
