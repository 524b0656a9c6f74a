"""The read path: a range of one version of a file, from wherever it can be had, into the caller's memory."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic

from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import CacheError, PageCorrupt, UnderStoreError
from kara_cache.failover import Failover
from kara_cache.local_pages import LocalPages
from kara_cache.stripe import STRIPE_BYTES, stripes
from kara_cache.ufs.base import UnderStore
from kara_cache.worker_client import WorkerClient

_VERIFY_S = 1.0  # a worker is told of its corrupt page in so long or not at all


class FileReads:
    """Thread-safe; usable in a forked child after its parts were told."""

    def __init__(self, failover: Failover, local: LocalPages, metrics: ClientMetrics) -> None:
        self._failover = failover
        self._local = local
        self._metrics = metrics

    def read_into(self, file: CachedFile, start: int, view: memoryview) -> int:
        """Fills `view` from byte `start`; fewer bytes only at the end of the file."""
        want = min(len(view), file.size - start)
        if want <= 0:
            return 0
        began = monotonic()
        held = 0
        if self._local.page_sizes:
            try:
                held = self._local.read_held(file, start, view[:want])
            except PageCorrupt as exc:
                self._local_corrupt(file, start, want, exc)
            if held == want:
                self._metrics.local_read(want, monotonic() - began)
                return want
        deadline = self._failover.deadline()
        if start % STRIPE_BYTES + want <= STRIPE_BYTES:
            self._read_stripe(file, start // STRIPE_BYTES, start, view[:want], held, deadline)
            return want
        for stripe in stripes(start, start + want):
            part = view[stripe.start - start : stripe.stop - start]
            # what was held lies at the front, maybe across stripes
            part_held = max(0, min(held - (stripe.start - start), len(part)))
            self._read_stripe(file, stripe.index, stripe.start, part, part_held, deadline)
        return want

    def _read_stripe(
        self, file: CachedFile, index: int, start: int, view: memoryview, held: int, deadline: float
    ) -> None:
        """Bytes within one stripe, of which the first `held` are there already."""
        began, count = monotonic(), len(view)
        if held == count:
            self._metrics.local_read(count, monotonic() - began)
            return

        def ask(worker: WorkerClient, keep: bool) -> None:
            nonlocal held
            if worker.link.is_local and keep:
                held += self._read_local(worker, file, start + held, view[held:], deadline)
            if held == count:
                self._metrics.local_read(count, monotonic() - began)
                return
            try:
                hit = worker.read_into(file, start + held, view[held:], keep=keep, deadline=deadline)
            except PageCorrupt:
                self._report(worker, file, start + held, count - held)
                raise
            self._metrics.worker_read(count, held, monotonic() - began, hit=hit)

        def from_store(store: UnderStore, path: str) -> None:
            got = store.read_into(path, start + held, view[held:], version=file.info.version or None)
            if got != count - held:
                size = file.size
                raise UnderStoreError(f"{file.path}: {got} bytes at {start + held} of a file of {size}")
            self._metrics.store_read(count, held, monotonic() - began)

        failover = self._failover
        cluster = failover.cluster
        try:
            table = cluster.table()
            owners = cluster.owners_of(table, file, index)
            failover.run(file.path, ask, from_store, deadline, table=table, owners=owners)
        except BaseException:
            self._metrics.failed_read(monotonic() - began)
            raise

    def _read_local(
        self, worker: WorkerClient, file: CachedFile, start: int, view: memoryview, deadline: float
    ) -> int:
        """What pages of this host give; a corrupt one is reported and the worker asked for its bytes."""
        try:
            return self._local.read_into(worker, file, start, view, deadline)
        except PageCorrupt as exc:
            self._failover.failed(worker, exc)
            self._report(worker, file, start, len(view))
            return 0

    def _local_corrupt(self, file: CachedFile, start: int, count: int, exc: PageCorrupt) -> None:
        """A page at hand was wrong: whose it is was not kept, so its owners on this host are told."""
        self._metrics.fallback(exc.reason)
        table = self._failover.cluster.table()
        for worker_id in self._failover.cluster.owners_of(table, file, start // STRIPE_BYTES):
            worker = table.clients[worker_id]
            if worker.link.is_local:
                self._report(worker, file, start, count)

    def _report(self, worker: WorkerClient, file: CachedFile, start: int, count: int) -> None:
        # if it cannot be told now, it finds out by itself when it serves the page
        with suppress(CacheError, OSError, ValueError):
            worker.verify(file, start, count, monotonic() + _VERIFY_S)
