"""One call to the cache, asked of one worker after the other, then of the store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from kara_cache.client_metrics import ClientMetrics
from kara_cache.cluster import Cluster, Table
from kara_cache.errors import (
    CacheError,
    ConfigError,
    PageCorrupt,
    StaleVersion,
    UnderStoreError,
    WorkerUnavailable,
)
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.ufs.base import UnderStore

log = logging.getLogger(__name__)

T = TypeVar("T")
Fallback = Callable[[str], tuple[UnderStore, str]]
"""Kara path to the store that holds it and the path there; LookupError when the caller gave none for it."""

_NOT_SUSPECT = frozenset({"busy", "corrupt", "stale", "cache_error"})  # the worker is alive and honest


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """What is wanted of the cache, in the two ways to get it."""

    path: str
    ask: Callable[[WorkerClient, bool], T]  # a worker, and whether it may keep pages
    store: Callable[[UnderStore, str], T] | None  # a store and the path in it; None: workers only
    deadline: float  # monotonic; no further worker is asked after it


class Detours:
    """How the attempts of one call failed, and whether another worker is worth asking.

    It keeps no error of a worker: those have the frames that keep it, and would wait for the collector.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: set[str] = set()  # ids of workers
        self.corrupt: set[str] = set()  # those of them that had a corrupt page
        self._failures: list[str] = []
        self._reason = "unavailable"  # of the last worker that failed
        self._stale_count = 0
        self._store_count = 0
        self.no_store: ConfigError | None = None  # why the caller's own store could not be opened

    def note(self, who: str, exc: CacheError | UnderStoreError) -> None:
        self._failures.append(f"{who}: {exc}")
        if isinstance(exc, UnderStoreError):
            self._store_count += 1
        elif isinstance(exc, StaleVersion):
            self._stale_count += 1
        else:
            self._reason = exc.reason

    @property
    def exhausted(self) -> bool:
        """The store's failure was seen through two workers, or a version is gone for two of them.

        One more worker may reach a store that another cannot, and one may still hold pages of a
        version that the store has replaced; a third adds nothing.
        """
        return self._store_count > 1 or self._stale_count > 1

    def error(self) -> Exception:
        """What the caller gets when nothing answered."""
        failed = self._failed()
        if self.no_store is None:
            return failed
        error = ConfigError(f"{self.no_store}; the store was needed because {failed}")
        error.__cause__, failed.__cause__ = failed, self.no_store
        return error

    def _failed(self) -> Exception:
        tried = "; ".join(self._failures) or "no worker is known"
        if self._stale_count:
            return StaleVersion(f"{self.path}: the store has another version now, open it again ({tried})")
        if self._store_count:
            return UnderStoreError(f"{self.path}: {tried}")
        return WorkerUnavailable(f"{self.path}: nothing could answer: {tried}", reason=self._reason)


class Failover:
    """Thread-safe. Failures are counted by reason; a worker that did not answer becomes a suspect."""

    def __init__(
        self, cluster: Cluster, metrics: ClientMetrics, *, timeout_s: float, fallback: Fallback | None
    ) -> None:
        self.cluster = cluster
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._fallback = fallback

    def deadline(self) -> float:
        """When workers must have answered a call that begins now.

        A caller with a store of its own keeps half of the time for it.
        """
        return monotonic() + (self._timeout_s if self._fallback is None else self._timeout_s / 2)

    def run(
        self,
        call: Call[T],
        *,
        table: Table | None = None,
        owners: tuple[str, ...] | None = None,
        detours: Detours | None = None,
    ) -> T:
        """The first answer: of workers in the order of `Cluster.candidates`, of the caller's own store,
        of workers that looked dead.

        What a caller knows already it may pass: the table, the owners, and detours taken so far.

        Raises:
            FileNotFoundError, PermissionError, AccessDenied, ...: answers, from whoever gave them.
            StaleVersion, UnderStoreError, WorkerUnavailable: nobody could answer; says who said what.
        """
        cluster = self.cluster
        if table is None:
            table = cluster.table()
        if owners is None:
            owners = cluster.owners(table, call.path)
        if detours is None:
            detours = Detours(call.path)
        for worker, keep in cluster.candidates(table, owners, detours.asked):
            if detours.exhausted or (detours.asked and monotonic() >= call.deadline):
                break
            try:
                answer = call.ask(worker, keep)
            except (CacheError, UnderStoreError) as exc:
                self.note(detours, worker, exc)
            else:
                cluster.suspects.answered(worker.id)
                return answer
        return self._without_workers(call, table, owners, detours)

    def note(self, detours: Detours, worker: WorkerClient, exc: CacheError | UnderStoreError) -> None:
        """`failed`, and for this call: the worker is not asked again."""
        detours.note(worker.id, exc)
        detours.asked.add(worker.id)
        if isinstance(exc, PageCorrupt):
            detours.corrupt.add(worker.id)
        self.failed(worker, exc)

    def failed(self, worker: WorkerClient, exc: CacheError | UnderStoreError) -> None:
        """Counts a failed attempt, and leaves the worker alone for a while if it seems to be dead."""
        reason = exc.reason if isinstance(exc, CacheError) else "store_error"
        self._metrics.fallback(reason)
        if isinstance(exc, CacheError) and reason not in _NOT_SUSPECT:
            self.cluster.suspects.failed(worker.id)
        log.debug("read.detour %s worker %s: %s", reason, worker.id, exc)

    def _without_workers(self, call: Call[T], table: Table, owners: tuple[str, ...], detours: Detours) -> T:
        own = self.store_of(call.path, detours) if call.store is not None else None
        if own is not None and call.store is not None:
            store, relative = own
            try:
                return call.store(store, relative)
            except (StaleVersion, UnderStoreError) as exc:
                detours.note(store.url, exc)
        # who was told of a corrupt page drops it, and may be asked once more
        for worker, keep in self.cluster.last_resort(table, owners, detours.asked - detours.corrupt):
            if detours.exhausted or monotonic() >= call.deadline:
                break
            try:
                answer = call.ask(worker, keep)
            except (CacheError, UnderStoreError) as exc:
                self.note(detours, worker, exc)
            else:
                self.cluster.suspects.answered(worker.id)
                return answer
        raise detours.error()

    def store_of(self, path: str, detours: Detours) -> tuple[UnderStore, str] | None:
        """The caller's own store for a path, and the path in it; None if it gave none.

        None as well for one that cannot be opened (a library is missing): `detours.error` tells.
        """
        if self._fallback is None:
            return None
        try:
            return self._fallback(path)
        except ConfigError as exc:
            detours.no_store = exc
        except LookupError:
            pass
        return None
