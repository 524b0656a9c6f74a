from __future__ import annotations

import asyncio
import os

import pytest

from kara_cache.checksum import checksum
from kara_cache.page import PageHeader, PageId
from kara_worker.data_port import reads
from kara_worker.fill import Fill

PAGE = 64 << 10


def headers(data: bytes, first: int) -> list[PageHeader]:
    return [
        PageHeader.of(
            PageId(b"f" * 16, first + at // PAGE), data[at : at + PAGE], page_bytes=PAGE, created_ns=1
        )
        for at in range(0, len(data), PAGE)
    ]


def test_readers_see_bytes_as_they_become_valid() -> None:
    async def scenario() -> None:
        data = os.urandom(PAGE + 100)
        fill = Fill(3, 3 * PAGE, 3 * PAGE + len(data), keep=True)
        fill.attach(memoryview(bytearray(data)))
        assert not await fill.wait_beyond(3 * PAGE, 0.01)
        waiting = asyncio.ensure_future(fill.wait_beyond(3 * PAGE + 10, 5))
        await asyncio.sleep(0)
        fill.progress_from_thread(50)
        assert await waiting
        assert fill.valid_until == 3 * PAGE + 50
        fill.progress_from_thread(20)  # a retry starts over: what was valid stays valid
        await asyncio.sleep(0)
        assert fill.valid_until == 3 * PAGE + 50
        fill.finish(headers(data, 3))
        assert await fill.wait_complete(1)
        assert bytes(fill.view(4 * PAGE, 4 * PAGE + 100)) == data[PAGE:]
        assert fill.sum_of(3 * PAGE, 4 * PAGE) == checksum(data[:PAGE])
        assert fill.sum_of(3 * PAGE + 7, 3 * PAGE + 9) == checksum(data[7:9])

    asyncio.run(scenario())


def test_a_failure_reaches_every_waiter() -> None:
    async def scenario() -> None:
        fill = Fill(0, 0, 10, keep=True)
        waiters = [asyncio.ensure_future(fill.wait_beyond(0, 5)) for _ in range(8)]
        await asyncio.sleep(0)
        fill.fail(OSError("store"))
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [str(result) for result in results] == ["store"] * 8
        with pytest.raises(OSError, match="store"):
            await fill.wait_complete(1)

    asyncio.run(scenario())


def test_who_waits_for_a_slow_fill_hears_that_somebody_works_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "SIGN_OF_LIFE_S", 0.001)

    class Asker:
        def __init__(self, fill: Fill) -> None:
            self.fill = fill
            self.signs = 0

        async def sign_of_life(self) -> None:
            self.signs += 1
            if self.signs == 2:
                self.fill.finish(headers(b"x", 0))

    async def scenario() -> None:
        fill = Fill(0, 0, 1, keep=True)
        fill.attach(memoryview(bytearray(b"x")))
        asker = Asker(fill)
        await asyncio.wait_for(reads.until_complete(asker, fill), 20)  # type: ignore[arg-type]
        assert asker.signs == 2
        await asyncio.wait_for(fill.wait_end(), 20)

    asyncio.run(scenario())


def test_a_task_that_waits_for_the_end_may_be_cancelled_before_it() -> None:
    async def scenario() -> None:
        fill = Fill(0, 0, 1, keep=True)
        waiting = asyncio.ensure_future(fill.wait_end())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        fill.fail(OSError("store"))
        assert fill.complete

    asyncio.run(scenario())
