"""Threads that carry bytes: bounded in number and in what they hold in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

Task = tuple[int, Callable[[], None]]
"""The bytes of memory that it needs, and what to do."""

_GRACE_S = 1.0  # for a Ctrl-C: a chunk is written in less, a stalled store would take a minute
_WAKE_S = 0.5  # so that a Ctrl-C is seen; nothing waits this long otherwise


class Stopped(Exception):
    """Another task failed, or the caller was interrupted: what `check_running` raises in the others."""


class TransferPool:
    """Runs tasks until all are done or one fails. For one caller at a time.

    A task that needs more than the whole budget runs when no other does.
    """

    def __init__(self, threads: int, budget_bytes: int) -> None:
        if threads < 1:
            raise ValueError(f"threads: want at least 1, got {threads}")
        self._threads = threads
        self._budget_bytes = budget_bytes
        self._turn = threading.Lock()  # held by the thread that takes a task and waits for its memory
        self._changed = threading.Condition()  # guards what follows
        self._used_bytes = 0
        self._running = 0
        self._error: BaseException | None = None
        self._stopping = False

    def run(self, tasks: Iterable[Task]) -> None:
        """Takes tasks one by one, so that a million of them need no memory, and returns when all are done.

        Raises the first error, when no task runs any more. A Ctrl-C waits for no longer than a second:
        a task that sits in a request to a store then goes on to its next `check_running`.
        """
        self._error, self._stopping = None, False
        waiting = iter(tasks)
        threads = [
            threading.Thread(target=self._work, args=(waiting,), name=f"kara-objects-{i}", daemon=True)
            for i in range(self._threads)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_WAKE_S)
        except BaseException:  # a Ctrl-C, or no more threads to be had
            self._stop()
            deadline = time.monotonic() + _GRACE_S
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if self._error is not None:
            raise self._error

    def check_running(self) -> None:
        """For tasks, after each request. Raises Stopped when their work is no longer wanted."""
        if self._stopping:
            raise Stopped

    def _stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _work(self, waiting: Iterator[Task]) -> None:
        while (task := self._next(waiting)) is not None:
            cost, do = task
            try:
                do()
            except Stopped:
                return
            except BaseException as exc:  # noqa: BLE001 - it is the caller's, in the caller's thread
                self._fail(exc)
                return
            finally:
                self._give_back(cost)

    def _next(self, waiting: Iterator[Task]) -> Task | None:
        """The next task when there is memory for it; they are begun in order."""
        with self._turn, self._changed:
            if self._stopping:
                return None
            try:
                task = next(waiting, None)
            except BaseException as exc:  # noqa: BLE001 - as above
                self._error, self._stopping = self._error or exc, True
                return None
            if task is None:
                return None
            while not self._stopping and self._running and self._used_bytes + task[0] > self._budget_bytes:
                self._changed.wait(_WAKE_S)
            if self._stopping:
                return None
            self._running += 1
            self._used_bytes += task[0]
            return task

    def _give_back(self, cost: int) -> None:
        with self._changed:
            self._running -= 1
            self._used_bytes -= cost
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._stopping = True
            self._changed.notify_all()
