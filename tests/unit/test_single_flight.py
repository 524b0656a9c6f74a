from __future__ import annotations

import asyncio

import pytest

from kara_worker.single_flight import SingleFlight


def test_callers_share_one_execution() -> None:
    async def scenario() -> tuple[list[int], int]:
        flights: SingleFlight[str, int] = SingleFlight()
        gate, runs = asyncio.Event(), 0

        async def work() -> int:
            nonlocal runs
            runs += 1
            await gate.wait()
            return 7

        callers = [asyncio.ensure_future(flights.run("page", work)) for _ in range(64)]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*callers), runs

    assert asyncio.run(scenario()) == ([7] * 64, 1)


def test_a_cancelled_leader_takes_nobody_with_it() -> None:
    async def scenario() -> int:
        flights: SingleFlight[str, int] = SingleFlight()
        gate = asyncio.Event()

        async def work() -> int:
            await gate.wait()
            return 7

        leader = asyncio.ensure_future(flights.run("page", work))
        follower = asyncio.ensure_future(flights.run("page", work))
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        gate.set()
        return await asyncio.wait_for(follower, 5)

    assert asyncio.run(scenario()) == 7


def test_a_failure_is_everyones_and_is_forgotten() -> None:
    async def scenario() -> int:
        flights: SingleFlight[str, int] = SingleFlight()

        async def fail() -> int:
            raise OSError("store")

        async def succeed() -> int:
            return 1

        results = await asyncio.gather(*(flights.run("page", fail) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, OSError) for result in results)
        assert len(flights) == 0
        return await flights.run("page", succeed)

    assert asyncio.run(scenario()) == 1
