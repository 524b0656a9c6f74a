"""One load job from its first file to its receipt, on the worker that holds it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from kara_cache.cluster import Cluster
from kara_cache.errors import CacheError
from kara_cache.load_job import LoadJob, LoadState, ManifestSum
from kara_cache.ufs.base import FileInfo
from kara_worker.jobs.batch import RETRIED, Action, Batch, Failure, Outcome, Reason
from kara_worker.jobs.destinations import Destinations
from kara_worker.jobs.errand import Errand, Retries, batches, errands_of
from kara_worker.jobs.feed import Chunk, Feed
from kara_worker.jobs.lanes import Answer, Lanes, tell_end
from kara_worker.jobs.ledger import Record
from kara_worker.mounted_stores import MountedStores

log = logging.getLogger(__name__)

_WINDOW = 24  # chunks that are being worked on: what is listed first may be done last
_TICK_S = 0.05
_END_TIMEOUT_S = 0.5


class Coordinator:
    """Runs in a thread of its own from `start`. What others may call says so.

    The record grows in place of being saved: whoever keeps it takes `record()` now and then, and when
    `finished` is set. `abandon` ends the work without a word to anybody: somebody else has the job.
    """

    def __init__(
        self,
        record: Record,
        cluster: Cluster,
        stores: MountedStores,
        *,
        page_bytes: int,
        patience_s: float,
        resumed: bool,
        on_end: Callable[[], object],
    ) -> None:
        self._job = record.job
        self._ledger = record.ledger
        self._claim = record.claim
        self._cluster = cluster
        self._stores = stores
        self._page_bytes = page_bytes  # to count pages that no worker could count
        self._resumed = resumed
        self._on_end = on_end  # called in our thread
        self._began = time.monotonic()
        self._lock = threading.Lock()  # guards _job, _ledger and _window against `record` of other threads
        self._window: deque[Chunk] = deque()
        self._stop = threading.Event()
        self._abandoned = threading.Event()
        self._destinations = Destinations(cluster, patience_s=patience_s)
        self._retries = Retries(patience_s=patience_s)
        self._copying: list[Errand] = []  # for the other owners of what is done
        self.finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load-{self._job.id[:8]}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Any thread. The job is STOPPED within a tick or two."""
        self._stop.set()

    def abandon(self) -> None:
        """Any thread."""
        self._abandoned.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def record(self) -> Record:
        """Any thread: as of now."""
        with self._lock:
            seconds = time.monotonic() - self._began
            tallies = [chunk.tally for chunk in self._window]
            job = self._job
            if not job.state.final:
                job = replace(job, progress=self._ledger.progress(tallies, seconds))
            ledger = self._ledger.copy()
        ledger.seconds += seconds
        return Record(job, ledger, self._claim)

    @property
    def job(self) -> LoadJob:
        """Any thread."""
        return self.record().job

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except Exception as exc:
            log.exception("load job %s failed", self._job.id)
            self._finish(LoadState.FAILED, f"internal error: {type(exc).__name__}")
        finally:
            if self._abandoned.is_set():
                log.info("load job %s: another worker has it now", self._job.id)
            else:
                tell_end(self._cluster, self._job.id, _END_TIMEOUT_S)

    def _work(self) -> None:
        if not self._job.options.partial_listing and not self._ledger.listed_all:
            self._count_first()
        while not self._over():
            problem = self._go_over_files()
            if self._over():
                break
            if problem is not None:
                self._finish(LoadState.FAILED, problem)
                return
            if self._last_round():
                self._judge()
                return
            with self._lock:
                self._ledger = self._ledger.next_round(time.time_ns())
            self._resumed = False
        if not self._abandoned.is_set():
            self._finish(LoadState.STOPPED, "stopped on request")

    def _over(self) -> bool:
        return self._stop.is_set() or self._abandoned.is_set()

    def _last_round(self) -> bool:
        """Round 1 looks at everything again; what it had to repair is looked for once more."""
        ledger = self._ledger
        if self._job.options.metadata_only or ledger.round == 2:
            return True
        return ledger.round == 1 and (not ledger.done.fetched or ledger.done.missing > 0)

    def _judge(self) -> None:
        missing = self._ledger.done.missing + self._ledger.lost.missing
        if not missing:
            self._finish(LoadState.SUCCEEDED, "")
            return
        failed = dict(self._ledger.done.failed)
        for reason, pages in self._ledger.lost.failed.items():
            failed[reason] = failed.get(reason, 0) + pages
        told = ", ".join(f"{reason} {pages}" for reason, pages in sorted(failed.items()))
        self._finish(LoadState.FAILED, f"{missing} pages are not there: {told}")

    def _finish(self, state: LoadState, message: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._began
            ledger = self._ledger
            receipt = None
            if state is not LoadState.STOPPED:
                receipt = ledger.receipt(self._job.options, seconds)
            self._job = replace(
                self._job,
                state=state,
                message=message,
                receipt=receipt,
                progress=ledger.progress([chunk.tally for chunk in self._window], seconds),
                finished_s=time.time(),
            )
        log.info("load job %s of %s: %s %s", self._job.id, self._job.path, state.value, message)
        self.finished.set()
        self._on_end()

    def _count_first(self) -> None:
        files = size = 0
        self._set_state(LoadState.RUNNING, "counting files")
        feed = Feed(self._entries, self._job.path, self._job.options.file_filter, "")
        while not self._over() and not feed.exhausted:
            chunk = feed.take()
            if chunk is None:
                self._stop.wait(_TICK_S)
                continue
            files += len(chunk.files)
            size += sum(info.size for info in chunk.files)
            with self._lock:
                self._ledger.files_listed, self._ledger.bytes_listed = files, size
        feed.stop()
        if feed.error is None and feed.ended:
            with self._lock:
                self._ledger.listed_all = True

    def _entries(self) -> Iterator[FileInfo]:
        return self._stores.list(self._job.path, recursive=True)

    def _set_state(self, state: LoadState, message: str = "") -> None:
        with self._lock:
            self._job = replace(self._job, state=state, message=message)

    def _go_over_files(self) -> str | None:
        """One round, from where it was left. What made it impossible, or None."""
        ledger = self._ledger
        self._set_state(LoadState.VERIFYING if ledger.round else LoadState.RUNNING)
        counted = ledger.listed_all
        before = (0, 0) if counted else (ledger.done.files, ledger.done.bytes)
        feed = Feed(self._entries, self._job.path, self._job.options.file_filter, ledger.after)
        lanes: Lanes[Errand] = Lanes(self._cluster)
        try:
            while not self._over():
                if not counted:
                    self._note_listed(before, feed)
                self._take_chunks(feed, lanes)
                self._send_on(lanes)
                answer = lanes.take(_TICK_S)
                while answer is not None:
                    self._settle(answer, lanes)
                    answer = lanes.take(0)
                self._advance()
                if feed.exhausted and not self._window:
                    return self._listing_problem(feed.error)
        finally:
            feed.stop()
            lanes.close()
        return None

    def _note_listed(self, before: tuple[int, int], feed: Feed) -> None:
        ledger, ended = self._ledger, feed.ended
        with self._lock:
            ledger.files_listed, ledger.bytes_listed = before[0] + feed.files, before[1] + feed.bytes
            ledger.listed_all = ended and feed.error is None

    def _listing_problem(self, error: Exception | None) -> str | None:
        if error is None:
            return None
        if isinstance(error, (OSError, ValueError, CacheError)):
            return f"{self._job.path} cannot be listed: {error}"[:500]
        raise error

    # -- sending -----------------------------------------------------------------------------------

    def _take_chunks(self, feed: Feed, lanes: Lanes[Errand]) -> None:
        mount, _ = self._stores.locate(self._job.path)
        copies = max(self._job.options.replicas, mount.replicas)
        while len(self._window) < _WINDOW and lanes.backlog() < _WINDOW:
            chunk = feed.take()
            if chunk is None:
                return
            errands = list(errands_of(chunk, whole_files=self._job.options.metadata_only))
            chunk.copies = self._destinations.copies(copies)
            chunk.open = len(errands) * chunk.copies
            with self._lock:
                self._window.append(chunk)
            self._retries.expect(chunk.open)
            self._send(errands, lanes)

    def _send(self, errands: Iterable[Errand], lanes: Lanes[Errand]) -> None:
        by_worker: dict[tuple[str, str], list[Errand]] = {}
        for errand in errands:
            worker = self._destinations.of(errand)
            if worker is None:
                self._wait_for_worker(errand)
            else:
                by_worker.setdefault((worker, errand.origin), []).append(errand)
        for (worker, _), mine in by_worker.items():
            for batch in batches(mine):
                lanes.put(worker, self._batch(batch), batch)

    def _batch(self, errands: list[Errand]) -> Batch:
        ledger, options = self._ledger, self._job.options
        action = Action.LOAD if ledger.round < 2 else Action.LOOK
        if options.metadata_only:
            action = Action.FACTS
        force = not options.skip_if_cached and not ledger.round
        again = self._resumed or any(e.attempt or e.troubled_at is not None for e in errands)
        return Batch(
            job=self._job.id,
            action=action,
            pieces=tuple(errand.piece for errand in errands),
            since_ns=ledger.since_ns if force or again else 0,
            force=force,
            verify=options.verify and ledger.round == 1,
            bandwidth_bytes_per_s=options.bandwidth_bytes_per_s,
            requests_per_s=options.requests_per_s,
            origin=errands[0].origin,
        )

    def _send_on(self, lanes: Lanes[Errand]) -> None:
        """Copies of what has come, and what is to be tried again."""
        due, self._copying = self._copying + self._retries.due(), []
        if due:
            self._send(due, lanes)

    # -- answers -----------------------------------------------------------------------------------

    def _settle(self, answer: Answer[Errand], lanes: Lanes[Errand]) -> None:
        if answer.outcome is None:
            self._settle_failed(answer, lanes)
            return
        self._destinations.answered(answer.worker)
        failures: dict[int, list[Failure]] = {}
        for failure in answer.outcome.failures:
            failures.setdefault(failure.piece, []).append(failure)
        with self._lock:
            self._count(answer.tags, answer.outcome)
        for index, errand in enumerate(answer.tags):
            if index in failures:
                self._settle_piece(errand, failures[index])
            else:
                self._done(errand, origin=answer.worker)

    def _count(self, errands: list[Errand], outcome: Outcome) -> None:
        """All errands of a batch are of one chunk, except of retries, where it matters little which."""
        tally = errands[0].chunk.tally
        failed = sum(failure.pages for failure in outcome.failures)
        tally.pages += outcome.pages - failed
        tally.present += outcome.present
        tally.fetched += outcome.fetched
        tally.bytes_fetched += outcome.bytes_fetched
        tally.requests += outcome.requests

    def _settle_failed(self, answer: Answer[Errand], lanes: Lanes[Errand]) -> None:
        if isinstance(answer.error, CacheError) and answer.error.reason != "busy":
            self._destinations.failed(answer.worker)
        log.debug("load job %s: worker %s: %s", self._job.id, answer.worker, answer.error)
        for errand in (*answer.tags, *lanes.recall(answer.worker)):
            self._wait_for_worker(errand)

    def _settle_piece(self, errand: Errand, failures: list[Failure]) -> None:
        tally = errand.chunk.tally
        if any(failure.reason in RETRIED for failure in failures) and self._retries.put(errand):
            there = failures[0].of - sum(failure.pages for failure in failures)
            with self._lock:  # the whole piece will be counted again
                tally.pages -= there
                tally.present -= there
                tally.retries += 1
            return
        for failure in failures:
            self._fail(errand, failure.reason, failure.pages)
        self._done(errand)

    def _wait_for_worker(self, errand: Errand) -> None:
        if self._retries.park(errand):
            return
        pages = -(-(errand.piece.stop - errand.piece.start) // self._page_bytes)
        self._fail(errand, Reason.UNAVAILABLE, pages)
        self._done(errand)

    def _done(self, errand: Errand, *, origin: str = "") -> None:
        """Files and bytes of a chunk that is not done are for those who watch; `_advance` counts them.
        `origin` has all its pages: the other owners take them from there, without it from the store."""
        errand.chunk.open -= 1
        self._copying += errand.copies(origin)
        if not errand.rank:
            with self._lock:
                errand.chunk.tally.bytes += errand.piece.stop - errand.piece.start
                errand.chunk.tally.files += errand.piece.stop == errand.info.size

    def _fail(self, errand: Errand, reason: Reason, pages: int) -> None:
        """The first round also notes what no later one can tell: its listing will be another."""
        lost = self._ledger.round == 0 and (reason is Reason.CHANGED or self._is_gone(errand, reason))
        with self._lock:
            errand.chunk.tally.fail(reason.value, pages, errand.info.path)
            if lost:
                errand.chunk.lost.fail(reason.value, pages, errand.info.path)

    def _is_gone(self, errand: Errand, reason: Reason) -> bool:
        if reason is not Reason.NOT_FOUND:
            return False
        try:
            self._stores.info(errand.info.path)
        except FileNotFoundError:
            return True
        except (OSError, CacheError):
            return False
        return False

    def _advance(self) -> None:
        """What is done from the beginning on goes into the books, where a successor finds it."""
        ledger = self._ledger
        with self._lock:
            while self._window and not self._window[0].open:
                chunk = self._window.popleft()
                manifest = ManifestSum(bytes.fromhex(ledger.manifest))
                for info in chunk.files:
                    manifest.add(info.path, info.version, info.size)
                ledger.manifest = manifest.value.hex()
                chunk.tally.files = len(chunk.files)
                chunk.tally.bytes = sum(info.size for info in chunk.files)
                ledger.done.add(chunk.tally)
                ledger.lost.add(chunk.lost)
                ledger.after = chunk.files[-1].path
