"""One step at a time in a thread, while the caller prepares the next one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class StepBehind:
    """For one caller at a time. The thread starts with the first step."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._step: Future[None] | None = None

    def start(self, step: Callable[[], None]) -> None:
        """Begins `step` when the one before has ended. Raises what that one raised instead."""
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="kara-rows")
        self._step = self._thread.submit(step)

    def wait(self) -> None:
        """Returns when nothing is under way. Raises what the last step raised, once."""
        step, self._step = self._step, None
        if step is not None:
            step.result()

    def close(self) -> None:
        """Waits, whatever the last step raises, and ends the thread. Idempotent."""
        thread, self._thread, self._step = self._thread, None, None
        if thread is not None:
            thread.shutdown()

    def after_fork(self) -> None:
        """In the child, where the thread is not."""
        self._thread = self._step = None
