"""The read path: a range of one version of a file, from wherever it can be had, into the caller's memory."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import CacheError, PageCorrupt, StaleVersion, UnderStoreError
from kara_cache.failover import Call, Detours, Failover
from kara_cache.metrics_push import MetricsPush
from kara_cache.read_stages import Marks
from kara_cache.reading.wide_reads import WIDE_BYTES, WideReads
from kara_cache.same_host.local_pages import LocalPages
from kara_cache.slow_reads import SlowReads
from kara_cache.stripe import STRIPE_BYTES, stripes
from kara_cache.transport.response import stages_told
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.ufs.base import UnderStore


class _Part:
    """The bytes of a read that lie in one stripe; the first `held` of them are there already."""

    __slots__ = ("asked", "began", "deadline", "file", "held", "hit", "marks", "start", "view")

    def __init__(
        self, file: CachedFile, start: int, view: memoryview, held: int, began: float, deadline: float
    ) -> None:
        self.file = file
        self.start = start
        self.view = view
        self.held = held
        self.hit = False  # whether a worker had all that was asked of it
        self.began = began
        self.asked = began  # when the attempt began that brought the bytes
        self.marks = Marks()
        self.deadline = deadline


class ReadParts(NamedTuple):
    """What reads stand on."""

    failover: Failover
    local: LocalPages
    metrics: ClientMetrics
    push: MetricsPush
    slow: SlowReads
    wide: WideReads


class FileReads:
    """Thread-safe; usable in a forked child after its parts were told."""

    def __init__(self, parts: ReadParts) -> None:
        self.changed: Callable[[str], None] = _nothing  # told the path when a version turned out to be gone
        self._failover, self._local, self._metrics, self._push, self._slow, self._wide = parts

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._wide.after_fork()

    def close(self) -> None:
        """Ends threads that wait for large reads; later ones go on without."""
        self._wide.close()

    def read_into(self, file: CachedFile, start: int, view: memoryview) -> int:
        """Fills `view` from byte `start`; fewer bytes only at the end of the file."""
        began = monotonic()
        if began >= self._push.due_at:
            self._push.when_due()
        local = self._local
        want = min(len(view), file.size - start)
        if start < 0:
            raise ValueError(f"{file.path}: read at {start}, before its start")
        if want <= 0:
            return 0
        if want < len(view):
            view = view[:want]
        held = 0
        if local.page_sizes:
            try:
                held = local.read_held(file, start, view)
            except PageCorrupt as exc:
                self._local_corrupt(file, start, want, exc)
            if held == want:
                self._metrics.local_read(want, monotonic() - began)
                return want
        deadline = self._failover.deadline()
        if want - held > WIDE_BYTES and self._is_far(file, start + held, start + want):
            if held:
                self._metrics.local_read(held, monotonic() - began)
            self._read_wide(file, start + held, view[held:], deadline)
            return want
        if start % STRIPE_BYTES + want <= STRIPE_BYTES:
            self._read_part(_Part(file, start, view, held, began, deadline), start // STRIPE_BYTES)
            return want
        for stripe in stripes(start, start + want):
            piece = view[stripe.start - start : stripe.stop - start]
            # what was held lies at the front, maybe across stripes
            piece_held = max(0, min(held - (stripe.start - start), len(piece)))
            self._read_part(_Part(file, stripe.start, piece, piece_held, monotonic(), deadline), stripe.index)
        return want

    def _is_far(self, file: CachedFile, start: int, stop: int) -> bool:
        """Whether a worker that is not on this host has part of the range, as far as is known."""
        cluster = self._failover.cluster
        table = cluster.table()
        for stripe in range(start // STRIPE_BYTES, (stop - 1) // STRIPE_BYTES + 1):
            worker = cluster.first(table, cluster.owners_of(table, file, stripe))
            if worker is None or not worker.link.is_local:
                return True
        return False

    def _read_wide(self, file: CachedFile, start: int, view: memoryview, deadline: float) -> None:
        """Fills `view` over several connections; each piece has its own detours."""

        def read_piece(at: int, to: int) -> bool:
            part = _Part(file, at, view[at - start : to - start], 0, monotonic(), deadline)
            self._read_part(part, at // STRIPE_BYTES)
            return part.hit

        self._wide.read(start, start + len(view), read_piece, deadline)

    def _read_part(self, part: _Part, stripe: int) -> None:
        failover, file = self._failover, part.file
        cluster = failover.cluster
        try:
            if part.held == len(part.view):
                self._metrics.local_read(part.held, monotonic() - part.began)
                return
            table = cluster.table()
            owners = cluster.owners_of(table, file, stripe)
            # nearly every read ends with the first worker: the machinery of detours comes after it
            detours, worker = Detours(file.path), cluster.first(table, owners)
            if worker is not None:
                try:
                    self._ask(worker, part, keep=True)
                except (CacheError, UnderStoreError) as exc:
                    failover.note(detours, worker, exc)
                else:
                    cluster.suspects.answered(worker.id)
                    return
            call = Call(
                file.path,
                lambda worker, keep: self._ask_again(worker, part, keep=keep),
                lambda store, path: self._from_store(store, path, part),
                part.deadline,
            )
            failover.run(call, table=table, owners=owners, detours=detours)
        except BaseException as exc:
            self._metrics.failed_read(monotonic() - part.began)
            if isinstance(exc, StaleVersion):
                self.changed(file.path)
            raise

    def _ask_again(self, worker: WorkerClient, part: _Part, *, keep: bool) -> None:
        part.asked = monotonic()
        self._ask(worker, part, keep=keep)

    def _ask(self, worker: WorkerClient, part: _Part, *, keep: bool) -> None:
        file, view = part.file, part.view
        if keep and worker.link.is_local:
            held = part.held
            self._read_local(worker, part)
            if part.held == len(view):
                if part.marks.hit is None:
                    self._metrics.local_read(part.held, monotonic() - part.began)
                else:
                    self._answered(worker, part, held, hit=part.marks.hit)
                return
            part.asked = monotonic()
        start = part.start + part.held
        if part.held:
            view = view[part.held :]
        try:
            hit = worker.read_into(file, start, view, keep=keep, deadline=part.deadline, marks=part.marks)
        except PageCorrupt:
            worker.report_corrupt(file, start, len(view))
            raise
        self._answered(worker, part, part.held, hit=hit)

    def _answered(self, worker: WorkerClient, part: _Part, held: int, *, hit: bool) -> None:
        """All but the first `held` bytes came from the worker."""
        part.hit = hit
        seconds = monotonic() - part.began
        self._metrics.worker_read(len(part.view), held, seconds, hit=hit)
        if seconds >= self._slow.least_s:
            marks = part.marks
            marks.answer_s = marks.complete - part.asked - marks.connect_s
            marks.verify_s = part.began + seconds - marks.complete
            marks.worker = stages_told(marks.fields)
            self._note_slow(part, worker.id, seconds)

    def _from_store(self, store: UnderStore, path: str, part: _Part) -> None:
        file, start, view = part.file, part.start + part.held, part.view[part.held :]
        part.asked = monotonic()
        got = store.read_into(path, start, view, version=file.info.version or None)
        if got != len(view):
            raise UnderStoreError(f"{file.path}: {got} bytes at {start} of a file of {file.size}")
        complete = monotonic()
        seconds = complete - part.began
        self._metrics.store_read(len(part.view), part.held, seconds)
        if seconds >= self._slow.least_s:
            part.marks = Marks()
            part.marks.answer_s = complete - part.asked
            part.marks.worker = {"store_body": part.marks.answer_s}
            self._note_slow(part, "store", seconds)

    def _note_slow(self, part: _Part, worker: str, seconds: float) -> None:
        detour_s = part.asked - part.began
        length = len(part.view)
        self._slow.add(
            part.file.path, part.start, length, worker, part.marks, total_s=seconds, detour_s=detour_s
        )

    def _read_local(self, worker: WorkerClient, part: _Part) -> None:
        """Takes what pages of this host give; a corrupt one is reported, and its bytes left to a request."""
        start, view = part.start + part.held, part.view[part.held :]
        try:
            part.held += self._local.read_into(worker, part.file, start, view, part.deadline, part.marks)
        except PageCorrupt as exc:
            self._failover.failed(worker, exc)
            worker.report_corrupt(part.file, start, len(view))

    def _local_corrupt(self, file: CachedFile, start: int, count: int, exc: PageCorrupt) -> None:
        """A page at hand was wrong: whose it is was not kept, so its owners on this host are told."""
        self._metrics.fallback(exc.reason)
        table = self._failover.cluster.table()
        for worker_id in self._failover.cluster.owners_of(table, file, start // STRIPE_BYTES):
            worker = table.clients[worker_id]
            if worker.link.is_local:
                worker.report_corrupt(file, start, count)


def _nothing(path: str) -> None:
    pass
