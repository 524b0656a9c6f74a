"""A fill: one request to the store for a run of neighbouring pages, watched by any number of readers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from kara_cache.checksum import checksum
from kara_cache.page import PageHeader


class Fill:
    """Bytes [start, stop) of a file on their way in.

    Readers may take what is valid so far; `headers` (one for each page) exist when it is complete.
    All methods but `attach` and `progress_from_thread` belong to the event loop's thread.
    """

    def __init__(self, first_page: int, start: int, stop: int, *, keep: bool) -> None:
        self.first_page = first_page
        self.start = start
        self.stop = stop
        self.keep = keep
        self.began = time.perf_counter()
        self.asked_at = 0.0  # when it had memory, and the store was asked
        self.first_at = 0.0  # when the first bytes had come
        self.valid = 0  # bytes from `start` that are in the buffer
        self.error: Exception | None = None
        self.headers: Sequence[PageHeader] = ()
        self.complete = False
        self.task: asyncio.Task[None] | None = None  # ends when its pages have reached the page store
        self.watched = False  # by a reader, now or earlier: its bytes may still be on their way out
        self._arrived = 0  # as `valid`, ahead of it while nobody watches
        self._buffer: memoryview | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def attach(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self.asked_at = time.perf_counter()

    def progress_from_thread(self, valid: int) -> None:
        """May be called by the store's thread; the loop may be closed already at shutdown."""
        self._arrived = valid
        if not self.watched:
            return  # waking the event loop costs as much as a small read
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._advance, valid)

    def watch(self) -> None:
        """A reader wants to know how it goes."""
        self.watched = True
        self._advance(self._arrived)

    def _advance(self, valid: int) -> None:
        # a retried request starts over: never go back, the bytes are of the same version
        if valid > self.valid and not self.complete:
            if not self.valid:
                self.first_at = time.perf_counter()
            self.valid = valid
            self._wake()

    def finish(self, headers: Sequence[PageHeader]) -> None:
        self.headers = headers
        self.first_at = self.first_at or time.perf_counter()
        self.valid = self.stop - self.start
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.complete = True
        self._wake()

    def _wake(self) -> None:
        if self.complete and not self._ended.done():
            self._ended.set_result(None)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, timeout_s: float) -> None:
        """The next change, or that long without one. `asyncio.wait_for` would make a task of each wait."""
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        timer = self._loop.call_later(timeout_s, _let_go, waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    async def wait_beyond(self, position: int, timeout_s: float) -> bool:
        """Whether bytes of the file beyond `position` are valid; waits for the next change at most so long.

        Raises what the fill failed with.
        """
        if not self.watched:
            self.watch()
        if self._ready(position):
            return True
        await self._change(timeout_s)
        return self._ready(position)

    def _ready(self, position: int) -> bool:
        if self.error is not None:
            raise self.error
        return self.start + self.valid > position

    async def wait_end(self) -> None:
        """Returns when it is complete or has failed."""
        await self._ended

    async def wait_complete(self, timeout_s: float) -> bool:
        """Whether the fill is complete, after waiting for the next change at most so long."""
        if not self.complete:
            await self._change(timeout_s)
        if self.error is not None:
            raise self.error
        return self.complete

    def view(self, start: int, stop: int) -> memoryview:
        """Bytes of the file that are valid; stays readable while it is held."""
        assert self._buffer is not None
        return self._buffer[start - self.start : stop - self.start]

    @property
    def valid_until(self) -> int:
        return self.start + self.valid

    def sum_of(self, start: int, stop: int) -> int:
        """The checksum of a piece (within one page), once complete; a whole page's was taken already."""
        page_bytes = self.headers[0].page_bytes
        header = self.headers[start // page_bytes - self.first_page]
        if start % page_bytes == 0 and stop - start == header.length:
            return header.page_sum
        return checksum(self.view(start, stop))


def _let_go(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
