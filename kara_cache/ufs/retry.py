"""When a request to a store is sent again: a deadline, backoff with full jitter, and a budget.

The budget keeps a browning-out store from being asked twice as often as a healthy one: a retry costs
one token, a call earns a tenth of one, so that beyond the reserve at most one request in ten is a
retry (Finagle's RetryBudget and gRPC's retry throttling, gRFC A6, work the same way).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from kara_cache.errors import UnderStoreError
from kara_cache.jitter import jitter

BASE_DELAY_S = 0.05  # about a round trip to another region
MAX_DELAY_S = 5.0  # a server that asks for a longer Retry-After is down for this call


class TryAgain(Exception):
    """An attempt failed in a way that the next one may not: reset, timeout, 5xx, throttled, a lie.

    Never leaves a store: `Attempts.wait_or_raise` makes an UnderStoreError of the last one.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s  # as the server asked


class RetryBudget:
    """Tokens shared by all calls of one store in one process. Thread-safe."""

    def __init__(self, *, reserve: float = 20.0, earned_per_call: float = 0.1) -> None:
        self._tokens = reserve
        self._reserve = reserve
        self._earned_per_call = earned_per_call
        self._lock = threading.Lock()  # guards _tokens

    def earn(self) -> None:
        with self._lock:
            self._tokens = min(self._reserve, self._tokens + self._earned_per_call)

    def spend(self) -> bool:
        """Whether there was a token for one retry."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def __repr__(self) -> str:
        return f"<RetryBudget {self._tokens:.1f} of {self._reserve:.0f} tokens>"


@dataclass(frozen=True, slots=True)
class RetryRule:
    """What one call may cost. `clock` and `sleep` are for tests that must not wait."""

    retries: int
    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Attempts:
    """The attempts of one call: ask `wait_or_raise` after each that failed and may be repeated."""

    def __init__(self, rule: RetryRule, budget: RetryBudget) -> None:
        self._rule = rule
        self._budget = budget
        self._failed = 0
        self.deadline = rule.clock() + rule.timeout_s
        budget.earn()

    @property
    def remaining_s(self) -> float:
        return self.deadline - self._rule.clock()

    def wait_or_raise(self, failure: Exception, *, retry_after_s: float | None = None) -> None:
        """Sleeps before the next attempt, or raises UnderStoreError: the failure and why this is the end."""
        self._failed += 1
        if self._failed > self._rule.retries:
            self._give_up(failure, "all failed")
        ceiling = min(MAX_DELAY_S, BASE_DELAY_S * 2 ** (self._failed - 1))
        delay_s = jitter(0, ceiling)
        if retry_after_s is not None:
            if retry_after_s > MAX_DELAY_S:
                self._give_up(failure, f"it asked to wait {retry_after_s:g} s, limit {MAX_DELAY_S:g}")
            delay_s += retry_after_s  # jitter on top: everybody was told the same number
        if delay_s >= self.remaining_s:
            self._give_up(failure, f"no time left of {self._rule.timeout_s:g} s")
        if not self._budget.spend():
            self._give_up(failure, "the store's retry budget is spent")
        self._rule.sleep(delay_s)

    def _give_up(self, failure: Exception, why: str) -> NoReturn:
        plural = "attempt" if self._failed == 1 else "attempts"
        raise UnderStoreError(f"{failure} ({self._failed} {plural}: {why})") from failure.__cause__
