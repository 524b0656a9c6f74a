"""Batches on their way to the workers: a few at a time to each, answers in the order they come."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from kara_cache.cluster import Cluster
from kara_cache.errors import FormatError, KaraError, WorkerUnavailable
from kara_worker.jobs.batch import Batch, Outcome, decode_outcome, encode_batch
from kara_worker.jobs.readers import ELSEWHERE_S

DEPTH = 3  # batches at one worker: one that it works on, one behind it, one whose answer is on its way
_MAX_THREADS = 48
_BATCH_TIMEOUT_S = 3600.0  # signs of life tell that a worker is there; a limit may make it slow on purpose

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """Of one worker to one batch; `tags` are what the caller gave with it."""

    worker: str
    tags: list[T]
    outcome: Outcome | None
    error: Exception | None


@dataclass(slots=True)
class _Lane:
    waiting: deque[tuple[Batch, list[Any]]] = field(default_factory=deque)  # Any: tags, which are T
    running: int = 0


class Lanes(Generic[T]):
    """For one caller's thread, which puts and takes; threads of its own wait for workers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lanes: dict[str, _Lane] = {}
        self._answers: queue.SimpleQueue[Answer[T]] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[tuple[str, Batch, list[T]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0  # threads that are not at work, less what waits for one
        self.in_flight = 0
        self._closed = False
        self._readers_until = 0.0  # monotonic; written by any thread, the last one counts

    def put(self, worker: str, batch: Batch, tags: list[T]) -> None:
        """Never waits."""
        lane = self._lanes.setdefault(worker, _Lane())
        lane.waiting.append((batch, tags))
        self.in_flight += 1
        self._send_on(worker, lane)

    def recall(self, worker: str) -> list[T]:
        """The tags of what has not been sent to a worker yet, and now will not be."""
        lane = self._lanes.get(worker)
        waiting = list(lane.waiting) if lane is not None else []
        if lane is not None:
            lane.waiting.clear()
        self.in_flight -= len(waiting)
        return [tag for _, tags in waiting for tag in tags]

    def backlog(self) -> int:
        """The longest line of batches that wait for one worker."""
        return max((len(lane.waiting) for lane in self._lanes.values()), default=0)

    def take(self, timeout_s: float) -> Answer[T] | None:
        """The next answer; None if none came in time."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            return None
        lane = self._lanes[answer.worker]
        lane.running -= 1
        self.in_flight -= 1
        self._idle += 1
        self._send_on(answer.worker, lane)
        return answer

    def close(self) -> None:
        """What is on its way is not waited for."""
        self._closed = True
        for _ in self._threads:
            self._work.put(None)

    def _send_on(self, worker: str, lane: _Lane) -> None:
        while lane.waiting and lane.running < DEPTH:
            batch, tags = lane.waiting.popleft()
            lane.running += 1
            if self._idle <= 0 and len(self._threads) < _MAX_THREADS:
                thread = threading.Thread(target=self._ask_on, name="load-lane", daemon=True)
                self._threads.append(thread)
                self._idle += 1
                thread.start()
            self._idle -= 1
            self._work.put((worker, batch, tags))

    def _ask_on(self) -> None:
        while (item := self._work.get()) is not None and not self._closed:
            worker, batch, tags = item
            outcome: Outcome | None = None
            error: Exception | None = None
            try:
                outcome = self._ask(worker, batch)
            except Exception as exc:  # noqa: BLE001 - a thread's top: the coordinator judges it
                error = exc
            self._answers.put(Answer(worker, tags, outcome, error))

    def _ask(self, worker: str, batch: Batch) -> Outcome:
        client = self._cluster.table().clients.get(worker)
        if client is None:
            raise WorkerUnavailable(f"worker {worker} is gone")
        deadline = time.monotonic() + _BATCH_TIMEOUT_S
        batch = msgspec.structs.replace(batch, readers=time.monotonic() < self._readers_until)
        document = client.call("POST", "/load", deadline, body=encode_batch(batch))
        try:
            outcome = decode_outcome(document)
        except FormatError as exc:
            raise WorkerUnavailable(f"worker {worker}: {exc}", reason="protocol") from exc
        if outcome.readers:
            self._readers_until = time.monotonic() + ELSEWHERE_S
        return outcome


def tell_end(cluster: Cluster, job: str, timeout_s: float) -> None:
    """Has all workers forget a job, at once and without waiting for those that do not answer."""
    table = cluster.table()

    def tell(worker: str) -> None:
        try:
            deadline = time.monotonic() + timeout_s
            table.clients[worker].call("DELETE", "/load", deadline, ("job", job))
        except (KaraError, OSError):
            pass  # it forgets by itself

    threads = [threading.Thread(target=tell, args=(worker,), daemon=True) for worker in table.live]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
