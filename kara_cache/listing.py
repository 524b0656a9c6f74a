"""Listings that survive the worker that began them."""

from __future__ import annotations

from collections.abc import Iterator

from kara_cache.errors import CacheError, UnderStoreError
from kara_cache.failover import Detours, Failover
from kara_cache.own_changes import OwnChanges
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.ufs.base import FileInfo, UnderStore


class Listing:
    """Entries below a path, from one worker after the other. Thread-safe."""

    def __init__(self, failover: Failover, changes: OwnChanges, *, timeout_s: float) -> None:
        """`timeout_s` bounds each wait for a worker, not the whole: the caller sets the pace."""
        self._failover = failover
        self._changes = changes
        self._timeout_s = timeout_s

    def entries(self, path: str, *, recursive: bool) -> Iterator[FileInfo]:
        """Each entry once. Who takes over begins again, so what was given out is passed over.

        Stores list in one order each, so the last entry given out marks the place; where it has
        been deleted meanwhile there is no telling, and the failure is raised.
        """
        detours = Detours(path)
        last: str | None = None
        for who, entries, worker in self._sources(path, recursive, detours):
            try:
                for entry in entries if last is None else _after(last, entries):
                    last = entry.path
                    yield entry
            except (CacheError, UnderStoreError) as exc:  # noqa: PERF203 - a network call each
                detours.note(who, exc)
                if worker is not None:
                    self._failover.failed(worker, exc)
                if detours.exhausted or isinstance(exc, _PlaceLost):
                    break
            else:
                if worker is not None:
                    self._failover.cluster.suspects.answered(worker.id)
                return
        raise detours.error()

    def _sources(
        self, path: str, recursive: bool, detours: Detours
    ) -> Iterator[tuple[str, Iterator[FileInfo], WorkerClient | None]]:
        """Whom to ask, what it says, and the worker if it is one."""
        cluster = self._failover.cluster
        table = cluster.table()
        owners = cluster.owners(table, path)
        for worker, _ in cluster.candidates(table, owners):
            detours.asked.add(worker.id)
            yield worker.id, self._of_worker(worker, path, recursive), worker
        own = self._failover.store_of(path, detours)
        if own is not None:
            store, below = own
            yield store.url, _in_store(store, below, path, recursive), None
        for worker, _ in cluster.last_resort(table, owners, detours.asked):
            yield worker.id, self._of_worker(worker, path, recursive), worker

    def _of_worker(self, worker: WorkerClient, path: str, recursive: bool) -> Iterator[FileInfo]:
        age_s = self._changes.age_s(path)
        return worker.list(path, recursive=recursive, timeout_s=self._timeout_s, age_s=age_s)


class _PlaceLost(CacheError):
    """The entry where a listing broke off is not there any more."""


def _after(last: str, entries: Iterator[FileInfo]) -> Iterator[FileInfo]:
    for entry in entries:
        if entry.path == last:
            yield from entries
            return
    raise _PlaceLost(f"{last} was listed and is gone: where to go on is not known")


def _in_store(store: UnderStore, below: str, path: str, recursive: bool) -> Iterator[FileInfo]:
    root = path[: len(path) - len(below)].rstrip("/")
    for entry in store.list(below, recursive=recursive):
        yield FileInfo(f"{root}/{entry.path}", entry.size, entry.version, entry.mtime, entry.is_dir)
