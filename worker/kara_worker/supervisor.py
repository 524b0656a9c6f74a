"""`--workers N`: one process for each worker; more cores or SSDs are used by more workers, not by sharing."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Protocol

from kara_cache.errors import ConfigError, KaraError
from kara_worker.config import WorkerConfig
from kara_worker.http.loop import run_loop

log = logging.getLogger(__name__)

EXIT_CONFIG = 6  # as of one worker
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ENDED_WELL = {0, *(-signum for signum in _SIGNALS)}  # drained, or not yet serving when it was told to end
_STDOUT = 1
_LOOK_EVERY_S = 0.2
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
        """Returns 0 when all workers drained, 6 when one refused its configuration, else 1."""
        for signum in _SIGNALS:
            signal.signal(signum, self._stop)
        for number in range(len(self._configs)):
            self._start(number)
        while not self._stopping:
            time.sleep(_LOOK_EVERY_S)
            for number in range(len(self._configs)):
                self._revive(number)
        self._tell()  # also one that was being started while the signal came
        running = [process for process in self._processes if process is not None]
        for process in running:
            process.join()
        codes = {process.exitcode for process in running} - _ENDED_WELL
        return EXIT_CONFIG if EXIT_CONFIG in codes else int(bool(codes))

    def _start(self, number: int) -> None:
        process = self._context.Process(target=_serve, args=(self._daemon, self._configs[number]))
        # Until the child has set its own, a signal would run our handler there.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
            self._processes[number], self._started[number] = process, time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _revive(self, number: int) -> None:
        process = self._processes[number]
        if process is None or process.is_alive() or self._stopping:
            return
        if process.exitcode == EXIT_CONFIG:  # starting it again helps nothing
            self._stopping = True
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
        self._tell()

    def _tell(self) -> None:
        for process in self._processes:
            if process is not None and process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)


def _serve(daemon: Callable[[WorkerConfig], Daemon], config: WorkerConfig) -> None:
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if _nobody_reads(_STDOUT):
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    try:
        run_loop(daemon(config).run())
    except (KaraError, OSError) as exc:
        print(f"kara-worker: {exc}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CONFIG if isinstance(exc, ConfigError) else 1)


def _nobody_reads(descriptor: int) -> bool:
    """Of a pipe: who started us has read the first ready lines and left."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
