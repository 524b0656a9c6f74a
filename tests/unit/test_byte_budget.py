from __future__ import annotations

import asyncio

import pytest

from kara_cache.errors import WorkerBusy
from kara_worker.byte_budget import ByteBudget


def test_waits_in_order_and_never_exceeds_the_limit() -> None:
    async def scenario() -> list[int]:
        budget, order = ByteBudget(10, what="test memory"), []

        async def use(number: int, count: int) -> None:
            await budget.acquire(count, 5)
            order.append(number)
            assert budget.used <= budget.limit
            await asyncio.sleep(0)
            budget.release(count)

        await asyncio.gather(*(use(number, 6) for number in range(5)))
        assert budget.used == 0
        return order

    assert asyncio.run(scenario()) == [0, 1, 2, 3, 4]


def test_larger_than_everything_goes_alone() -> None:
    async def scenario() -> None:
        budget = ByteBudget(10, what="test memory")
        await budget.acquire(50, 1)
        with pytest.raises(WorkerBusy, match="no room for 1 bytes of test memory"):
            await budget.acquire(1, 0.01)
        budget.release(50)
        await budget.acquire(1, 1)

    asyncio.run(scenario())


def test_who_gave_up_holds_nothing() -> None:
    async def scenario() -> int:
        budget = ByteBudget(10, what="test memory")
        await budget.acquire(10, 1)
        waiting = asyncio.ensure_future(budget.acquire(5, 5))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        budget.release(10)
        return budget.used

    assert asyncio.run(scenario()) == 0
