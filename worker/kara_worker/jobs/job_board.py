"""The load jobs of a cluster as one worker knows them, those among them that it coordinates, and who dies."""

from __future__ import annotations

import asyncio
import builtins
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kara_cache.cluster import Cluster
from kara_cache.errors import FormatError, KaraError, MembershipError
from kara_cache.jitter import jitter
from kara_cache.load_job import LoadJob, LoadOptions, LoadState, decode_job_document
from kara_cache.mount import normalize_path
from kara_worker.jobs.coordinator import Coordinator
from kara_worker.jobs.journal import Journal, Stored
from kara_worker.jobs.ledger import claimed, names, new_record
from kara_worker.jobs.load_metrics import LoadMetrics
from kara_worker.mounted_stores import MountedStores

log = logging.getLogger(__name__)

MAX_RUNNING = 4  # jobs that one worker coordinates at a time; the owners bound the work, this bounds threads
_BUSY_TICK_S, _IDLE_TICK_S = 0.25, 1.0
_SAVE_S = 2.0  # between two writings of a job's progress: a successor goes on from there
_PEER_TIMEOUT_S = 2.0
_CLOSE_S = 2.0

V = TypeVar("V")


@dataclass(slots=True)
class Held:
    """A job that this worker holds."""

    stored: Stored
    coordinator: Coordinator
    started: bool = False
    saved_at: float = 0.0  # monotonic

    @property
    def job(self) -> LoadJob:
        """Its end is told when it is written down: what somebody was told is so after a crash as well."""
        job = self.coordinator.job
        if not job.state.final:
            return job
        return replace(job, state=LoadState.VERIFYING, receipt=None, finished_s=None, message="")


class JobBoard:
    """Implements `LoadBoard`. Between `start` and `close` a thread looks after the journal: it saves how far
    our jobs are, notices who is asked to stop, and takes up jobs whose coordinator is gone."""

    def __init__(
        self,
        journal: Journal,
        cluster: Cluster,
        stores: MountedStores,
        metrics: LoadMetrics,
        executor: Executor,
        *,
        worker: str,
        page_bytes: int,
        patience_s: float,
    ) -> None:
        """`patience_s`: how long a job waits for a worker that is away."""
        self._journal = journal
        self._cluster = cluster
        self._stores = stores
        self._metrics = metrics
        self._executor = executor
        self._worker = worker
        self._page_bytes = page_bytes
        self._patience_s = patience_s
        self._lock = threading.Lock()  # guards _held
        self._held: dict[str, Held] = {}  # by id
        self._wake = threading.Event()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._look_after, name="load-board", daemon=True)
        metrics.running = lambda: len(self._held)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Our jobs go to others, or wait for this worker's next start. Blocking, idempotent."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        for held in self._all_held():
            held.coordinator.abandon()
        for held in self._all_held():
            if held.started:
                held.coordinator.join(_CLOSE_S)
            try:
                if held.coordinator.finished.is_set():
                    self._journal.finish(held.stored, held.coordinator.record())
                else:
                    self._journal.release(held.stored, held.coordinator.record())
            except MembershipError as exc:
                log.warning("load job %s: %s", held.stored.record.job.id, exc)
        self._journal.close()

    # -- the port, on the event loop ---------------------------------------------------------------

    async def submit(self, path: str, options: LoadOptions) -> LoadJob:
        path = normalize_path(path)
        self._stores.locate(path)
        if not self._journal.shared:
            for job in await self._ask_peers("GET", path):
                if not job.state.final:
                    return job
        record = new_record(path, options, self._worker)
        stored = await self._in_thread(self._journal.submit, record)
        if stored.record.job.id == record.job.id:
            self._take(stored, resumed=False)
            self._wake.set()
            return record.job
        return await self.find(stored.record.job.id) or stored.record.job

    async def find(self, path_or_id: str) -> LoadJob | None:
        held = self._held_job(path_or_id)
        if held is not None:
            return held.job
        record = await self._in_thread(self._journal.find, path_or_id)
        if record is None:
            return None if self._journal.shared else _newest(await self._ask_peers("GET", path_or_id))
        if record.job.state.final or not self._journal.shared:
            return record.job
        return await self._in_thread(self._ask, record.job.coordinator, "GET", record.job.id) or record.job

    async def stop(self, path_or_id: str) -> LoadJob | None:
        held = self._held_job(path_or_id)
        if held is not None:
            held.coordinator.stop()
            self._wake.set()
            return held.job
        record = await self._in_thread(self._journal.find, path_or_id)
        if record is None:
            return None if self._journal.shared else _newest(await self._ask_peers("DELETE", path_or_id))
        if record.job.state.final:
            return record.job
        await self._in_thread(self._journal.ask_stop, record)
        asked = await self._in_thread(self._ask, record.job.coordinator, "DELETE", record.job.id)
        return asked or record.job

    async def list(self) -> list[LoadJob]:
        found = {record.job.id: record.job for record in await self._in_thread(self._journal.all)}
        if not self._journal.shared:
            found = {job.id: job for job in await self._ask_peers("GET", "")} | found
        found |= {job.id: job for job in (held.job for held in self._all_held())}
        return sorted(found.values(), key=lambda job: -job.submitted_s)

    def find_here(self, path_or_id: str) -> LoadJob | None:
        """Only what this worker holds, or keeps where nobody else can see it. Any thread."""
        held = self._held_job(path_or_id)
        if held is not None:
            return held.job
        if self._journal.shared:
            return None
        record = self._journal.find(path_or_id)
        return record.job if record is not None else None

    def stop_here(self, path_or_id: str) -> LoadJob | None:
        """Any thread."""
        held = self._held_job(path_or_id)
        if held is None:
            return self.find_here(path_or_id)
        held.coordinator.stop()
        self._wake.set()
        return held.job

    def list_here(self) -> builtins.list[LoadJob]:
        """Any thread."""
        return [held.job for held in self._all_held()] if self._journal.shared else self._own()

    def _own(self) -> builtins.list[LoadJob]:
        jobs = {record.job.id: record.job for record in self._journal.all()}
        return [*(jobs | {held.job.id: held.job for held in self._all_held()}).values()]

    # -- peers -------------------------------------------------------------------------------------

    async def _ask_peers(self, method: str, path_or_id: str) -> builtins.list[LoadJob]:
        """What every other worker says of its own jobs; those that do not answer have none."""
        workers = self._cluster.table().live
        answers = await asyncio.gather(
            *(self._in_thread(self._ask_one, worker, method, path_or_id) for worker in workers)
        )
        return [job for jobs in answers for job in jobs]

    def _ask(self, worker: str, method: str, path_or_id: str) -> LoadJob | None:
        return next(iter(self._ask_one(worker, method, path_or_id)), None)

    def _ask_one(self, worker: str, method: str, path_or_id: str) -> builtins.list[LoadJob]:
        client = self._cluster.table().clients.get(worker)
        if client is None or worker == self._worker:
            return []
        deadline = time.monotonic() + _PEER_TIMEOUT_S
        try:
            if not path_or_id:
                documents = client.call("GET", "/jobs", deadline, ("here", 1))
            else:
                documents = [client.call(method, "/job", deadline, ("of", path_or_id), ("here", 1))]
            return [decode_job_document(document) for document in documents]
        except (KaraError, OSError, FormatError, TypeError) as exc:
            log.debug("worker %s knows no load job %s: %s", worker, path_or_id, exc)
            return []

    # -- what this worker holds --------------------------------------------------------------------

    def _take(self, stored: Stored, *, resumed: bool) -> None:
        coordinator = Coordinator(
            stored.record,
            self._cluster,
            self._stores,
            page_bytes=self._page_bytes,
            patience_s=self._patience_s,
            resumed=resumed,
            on_end=self._wake.set,
        )
        with self._lock:
            self._held[stored.record.job.id] = Held(stored, coordinator, saved_at=time.monotonic())

    def _all_held(self) -> builtins.list[Held]:
        with self._lock:
            return [*self._held.values()]

    def _held_job(self, path_or_id: str) -> Held | None:
        for held in self._all_held():
            if names(held.stored.record.job, path_or_id):
                return held
        return None

    def _drop(self, held: Held) -> None:
        with self._lock:
            self._held.pop(held.stored.record.job.id, None)

    # -- the thread --------------------------------------------------------------------------------

    def _look_after(self) -> None:
        while not self._closing:
            try:
                self._tick()
                self._failing = False
            except MembershipError as exc:
                if not self._failing:  # once for each outage
                    log.warning("load jobs: the journal is out of reach, running jobs go on: %s", exc)
                self._failing = True
            except Exception:
                log.exception("load jobs")
            tick_s = _BUSY_TICK_S if self._held else _IDLE_TICK_S * jitter(0.5, 1.0)
            self._wake.wait(tick_s)
            self._wake.clear()

    def _tick(self) -> None:
        self._start_some()
        self._journal.beat()
        seen = {stored.record.job.id: stored for stored in self._journal.active()}
        for held in self._all_held():
            stored = seen.pop(held.stored.record.job.id, None)
            if stored is not None:
                self._compare(held, stored)
            self._keep(held)
        for stored in seen.values():
            if not stored.held and len(self._held) < MAX_RUNNING:
                self._take_over(stored)

    def _start_some(self) -> None:
        running = sum(held.started for held in self._all_held())
        for held in self._all_held():
            if not held.started and running < MAX_RUNNING:
                held.started = True
                running += 1
                held.coordinator.start()

    def _compare(self, held: Held, stored: Stored) -> None:
        """What is written of a job that we hold, against what we believe."""
        if stored.record.claim != held.stored.record.claim:
            log.warning("load job %s was taken over from us", stored.record.job.id)
            held.coordinator.abandon()
            self._drop(held)
            return
        if stored.revision > held.stored.revision:
            held.stored = held.stored._replace(revision=stored.revision)
        if stored.stop:
            held.coordinator.stop()
        if not stored.held:
            self._journal.hold(stored)

    def _keep(self, held: Held) -> None:
        if held.coordinator.finished.is_set():
            record = held.coordinator.record()
            if self._journal.finish(held.stored, record):
                self._metrics.finished(record.job.state)
            self._drop(held)
        elif held.started and time.monotonic() - held.saved_at > _SAVE_S:
            saved = self._journal.save(held.stored, held.coordinator.record())
            if saved is None:
                held.coordinator.abandon()
                self._drop(held)
                return
            held.stored, held.saved_at = saved, time.monotonic()

    def _take_over(self, stored: Stored) -> None:
        record = claimed(stored.record, self._worker)
        taken = self._journal.claim(stored, record)
        if taken is None:
            return
        log.info("load job %s of %s: taken up", record.job.id, record.job.path)
        self._metrics.takeovers += 1
        self._take(taken, resumed=True)
        self._start_some()

    async def _in_thread(self, work: Callable[..., V], *args: Any) -> V:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


def _newest(jobs: builtins.list[LoadJob]) -> LoadJob | None:
    """A running one before the last that ended."""
    return max(jobs, key=lambda job: (not job.state.final, job.submitted_s), default=None)
