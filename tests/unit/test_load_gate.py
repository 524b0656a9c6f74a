"""The gate of load jobs: never more inside than its limit, fewer while readers wait, nobody lost."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from kara_worker.jobs.gate import LATE_S, LEAST, Gate


def test_a_late_loop_halves_the_limit_while_somebody_reads() -> None:
    async def run() -> list[int]:
        gate, limits = Gate(16), []
        for late_s, readers in [(1, True), (1, True), (1, True), (1, True), (0, True), (0, True), (1, False)]:
            gate.note(late_s, readers=readers)
            limits.append(gate.limit)
        return limits

    assert asyncio.run(run()) == [8, 4, 2, 2, 3, 4, 16]


def test_what_readers_do_not_notice_changes_nothing() -> None:
    async def run() -> int:
        gate = Gate(4)
        gate.note(LATE_S / 2, readers=True)
        return gate.limit

    assert asyncio.run(run()) == 4


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
                gate.note(1.0, readers=True)
                assert gate.limit >= min(LEAST, most)
            elif step == "quiet":
                gate.note(0.0, readers=False)
            await asyncio.sleep(0)
        for door in doors:
            door.set()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in done)
        assert inside == 0
        async with gate:  # and it is not stuck
            pass

    asyncio.run(run())
