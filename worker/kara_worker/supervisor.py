"""`--workers N`: one process for each worker; more cores or SSDs are used by more workers, not by sharing."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Protocol

from kara_worker.config import WorkerConfig
from kara_worker.loop import run_loop

log = logging.getLogger(__name__)

_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before a worker that ended is started again
_STEADY_S = 60.0  # a worker that ran for so long starts again at once


class Daemon(Protocol):
    def run(self) -> Coroutine[None, None, None]: ...


class Supervisor:
    """Keeps the workers running until SIGTERM or SIGINT, which it passes on; they drain at the same time.

    A worker that ends by itself is started again, later and later while it keeps ending.
    """

    def __init__(self, configs: Sequence[WorkerConfig], daemon: Callable[[WorkerConfig], Daemon]) -> None:
        self._configs = configs
        self._daemon = daemon
        self._context = get_context("fork")  # before any thread exists in this process
        self._processes: list[BaseProcess | None] = [None] * len(configs)
        self._started = [0.0] * len(configs)
        self._failures = [0] * len(configs)
        self._stopping = False

    def run(self) -> int:
        """Returns 0 when all workers drained, 1 otherwise."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        for number in range(len(self._configs)):
            self._start(number)
        while not self._stopping:
            time.sleep(0.2)
            for number in range(len(self._configs)):
                self._revive(number)
        running = [process for process in self._processes if process is not None]
        for process in running:
            process.join()
        return int(any(process.exitcode for process in running))

    def _start(self, number: int) -> None:
        process = self._context.Process(target=_serve, args=(self._daemon, self._configs[number]))
        process.start()
        self._processes[number], self._started[number] = process, time.monotonic()

    def _revive(self, number: int) -> None:
        process = self._processes[number]
        if process is None or process.is_alive() or self._stopping:
            return
        lived = time.monotonic() - self._started[number]
        if lived > _STEADY_S:
            self._failures[number] = 0
        wait = _BACKOFF_S[min(self._failures[number], len(_BACKOFF_S) - 1)]
        if lived > wait:
            log.error("worker %d ended with %s: starting it again", number, process.exitcode)
            self._failures[number] += 1
            self._start(number)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for process in self._processes:
            if process is not None and process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)


def _serve(daemon: Callable[[WorkerConfig], Daemon], config: WorkerConfig) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    run_loop(daemon(config).run())
