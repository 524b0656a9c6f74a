"""Repeats single attempts at an object store by the rule and budget that all stores share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kara_cache.ufs.per_process import PerProcess
from kara_cache.ufs.retry import Attempts, RetryBudget, RetryRule, TryAgain

_Answer = TypeVar("_Answer")


class Retries:
    """For one store. Thread-safe and usable after a fork."""

    def __init__(self, rule: RetryRule) -> None:
        self._rule = rule
        self._budget = PerProcess(RetryBudget, lambda budget: None)

    def run(self, attempt: Callable[[], _Answer]) -> _Answer:
        """What `attempt` returns once it does. Raises UnderStoreError if the last one said TryAgain."""
        return self.run_timed(lambda _: attempt())

    def run_timed(self, attempt: Callable[[Attempts], _Answer]) -> _Answer:
        """As `run`, for an attempt that looks at the time left itself."""
        attempts = Attempts(self._rule, self._budget.get())
        while True:
            try:
                return attempt(attempts)
            except TryAgain as failure:  # noqa: PERF203 - the loop is there for it
                attempts.wait_or_raise(failure, retry_after_s=failure.retry_after_s)
