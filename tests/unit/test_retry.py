from __future__ import annotations

from contextlib import suppress

import pytest

from kara_cache.errors import UnderStoreError
from kara_cache.ufs.retry import MAX_DELAY_S, Attempts, RetryBudget, RetryRule, TryAgain


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds

    def rule(self, *, retries: int = 3, timeout_s: float = 60.0) -> RetryRule:
        return RetryRule(retries, timeout_s, clock=lambda: self.now_s, sleep=self.sleep)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail_until_given_up(attempts: Attempts, **more: float) -> str:
    def fail() -> None:
        for _ in range(100):
            attempts.wait_or_raise(TryAgain("GET x: 503"), **more)

    with pytest.raises(UnderStoreError) as caught:
        fail()
    return str(caught.value)


def test_backoff_grows_to_its_ceiling_and_then_gives_up(clock: Clock) -> None:
    error = fail_until_given_up(Attempts(clock.rule(retries=12), RetryBudget()))
    assert error == "GET x: 503 (13 attempts: all failed)"
    assert len(clock.slept_s) == 12
    assert all(slept <= min(MAX_DELAY_S, 0.05 * 2**i) for i, slept in enumerate(clock.slept_s))
    assert len(set(clock.slept_s)) == 12, "no jitter"


def test_deadline_counts_the_wait_to_come(clock: Clock) -> None:
    attempts = Attempts(clock.rule(retries=1000, timeout_s=2.0), RetryBudget(reserve=1000))
    error = fail_until_given_up(attempts)
    assert "no time left of 2 s" in error
    assert sum(clock.slept_s) < 2.0


def test_retry_after_is_honoured_up_to_the_cap(clock: Clock) -> None:
    attempts = Attempts(clock.rule(), RetryBudget())
    attempts.wait_or_raise(TryAgain("x"), retry_after_s=3.0)
    assert 3.0 <= clock.slept_s[0] <= 3.1
    error = fail_until_given_up(attempts, retry_after_s=3600)
    assert "asked to wait 3600 s, limit 5" in error
    assert len(clock.slept_s) == 1


def test_budget_lets_one_call_in_ten_retry(clock: Clock) -> None:
    budget = RetryBudget(reserve=5)
    for _ in range(1000):  # every first attempt fails, every second one works
        with suppress(UnderStoreError):
            Attempts(clock.rule(), budget).wait_or_raise(TryAgain("x"))
    assert 95 <= len(clock.slept_s) <= 106
    assert "budget is spent" in fail_until_given_up(Attempts(clock.rule(), RetryBudget(reserve=0)))


def test_cause_survives(clock: Clock) -> None:
    cause = ValueError("why")
    try:
        raise TryAgain("broken") from cause
    except TryAgain as error:
        failure = error
    with pytest.raises(UnderStoreError, match="broken") as caught:
        Attempts(clock.rule(retries=0), RetryBudget()).wait_or_raise(failure)
    assert caught.value.__cause__ is cause
