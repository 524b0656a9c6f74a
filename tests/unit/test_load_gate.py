"""The gate of load jobs: never more inside than its limit, fewer while readers wait, nobody lost."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from kara_worker.jobs.courtesy import LEAST, Look
from kara_worker.jobs.gate import Gate

NOBODY_WAITS, READERS_WAIT = Look(0.0, 0.0, 1.0), Look(1.0, 1.0, 1.0)


def test_what_readers_leave_and_what_the_store_bears_both_bound_it() -> None:
    async def run() -> list[int]:
        gate, limits = Gate(16), []
        gate.note(READERS_WAIT, readers=True)
        limits.append(gate.limit)
        gate.bound(3)
        limits.append(gate.limit)
        gate.note(NOBODY_WAITS, readers=False)
        limits.append(gate.limit)
        gate.bound(100)
        limits.append(gate.limit)
        return limits

    assert asyncio.run(run()) == [8, 3, 3, 16]


@given(
    st.integers(1, 6),
    st.lists(st.sampled_from(["enter", "leave", "cancel", "late", "quiet"]), max_size=60),
)
def test_whatever_happens_the_limit_holds_and_everybody_gets_in(most: int, steps: list[str]) -> None:
    async def run() -> None:
        gate, inside, most_inside = Gate(most), 0, 0
        tasks: list[asyncio.Task[None]] = []
        doors: list[asyncio.Event] = []

        async def visit(door: asyncio.Event) -> None:
            nonlocal inside, most_inside
            async with gate:
                inside += 1
                most_inside = max(most_inside, inside)
                assert inside <= most
                try:
                    await door.wait()
                finally:
                    inside -= 1

        for step in steps:
            if step == "enter":
                before = inside
                doors.append(asyncio.Event())
                tasks.append(asyncio.create_task(visit(doors[-1])))
                await asyncio.sleep(0)
                assert inside == before or inside <= gate.limit
            elif step == "leave" and doors:
                doors[0].set()
                doors.pop(0)
            elif step == "cancel" and tasks:
                tasks[len(tasks) // 2].cancel()
            elif step == "late":
                gate.note(READERS_WAIT, readers=True)
                assert gate.limit >= min(LEAST, most)
            elif step == "quiet":
                gate.note(NOBODY_WAITS, readers=False)
            await asyncio.sleep(0)
        for door in doors:
            door.set()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in done)
        assert inside == 0
        async with gate:  # and it is not stuck
            pass

    asyncio.run(run())
