"""A few threads that read ahead for all files of a client."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_THREADS = 4
MAX_QUEUED = 256
_IDLE_S = 30.0


class ReadThreads:
    """Daemon threads, started when there is work and gone when there is none for a while. Thread-safe.

    Nothing waits for them: who needs bytes that are still queued fetches them itself.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._work = threading.Condition(threading.Lock())  # guards all below
        self._queue: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<ReadThreads {self._threads} running, {self._idle} idle, {len(self._queue)} queued>"

    def submit(self, task: Callable[[], None]) -> bool:
        """Queues `task`, which must not raise; False when the queue is full or closed."""
        with self._work:
            if self._closed or len(self._queue) >= MAX_QUEUED:
                return False
            self._queue.append(task)
            if len(self._queue) > self._idle and self._threads < MAX_THREADS:
                self._threads += 1
                start = True
            else:
                self._work.notify()
                start = False
        if start:
            self._start(self._work)
        return True

    def close(self) -> None:
        """Forgets what is queued; threads end with the task at hand."""
        with self._work:
            self._closed = True
            self._queue.clear()
            self._work.notify_all()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock. The parent's threads do not exist here."""
        self._reset()

    def _start(self, work: threading.Condition) -> None:
        try:
            threading.Thread(target=self._run, args=(work,), name="kara-read-ahead", daemon=True).start()
        except RuntimeError:  # the interpreter is ending, or the process has too many
            with work:
                self._threads -= 1

    def _run(self, work: threading.Condition) -> None:
        while True:
            with work:
                self._idle += 1
                work.wait_for(lambda: self._queue or self._closed, _IDLE_S)
                self._idle -= 1
                if not self._queue:
                    self._threads -= 1
                    return
                task = self._queue.popleft()
            try:
                task()
            except Exception:  # the top of a thread
                log.exception("read-ahead failed")
            del task  # a reader must not live on in an idle thread
