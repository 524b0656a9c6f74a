"""Pages on SSD for readers to come: how load jobs fill the cache, group by group."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from kara_cache.page import PageHeader, PageId, block_bytes_for
from kara_worker.fetch.source import Fetched, Seat, Source, Wanted
from kara_worker.fill import Fill
from kara_worker.page_cache import FileRef, PageCache, as_answer


@dataclass(slots=True)
class Brought:
    """What one call did for one file. `error` is what the store answered."""

    pages: list[int] = field(default_factory=list)  # that this call fetched
    copied: list[int] = field(default_factory=list)  # that came from another worker
    requests: int = 0
    took: list[tuple[int, float]] = field(default_factory=list)  # of each request: bytes and seconds
    error: Exception | None = None


@dataclass(slots=True)
class _Run:
    """Neighbouring pages: one request."""

    ref: FileRef
    fill: Fill
    told: Brought
    headers: Sequence[PageHeader] = ()
    error: Exception | None = None


class Bringing:
    """Event loop only. Bounds on memory and rates are the caller's; readers' own bounds are not touched.

    What others are fetching is waited for, not fetched again, and readers join what is fetched here.
    """

    def __init__(self, cache: PageCache, source: Source, threads: Executor) -> None:
        """`threads` are as many as `source` has seats."""
        self.source = source
        self.pace_s = 0.0  # what a file took lately, at the store; 0 before the first
        self._cache = cache
        self._threads = threads

    async def bring(self, files: Sequence[tuple[FileRef, Sequence[int]]]) -> list[Brought]:
        """Has these pages fetched, one file after another, in one thread: each change of threads costs as
        much as a small file. All files are of one mount and fit into a seat; the pages of each ascend.

        A page may still be missing afterwards, where the page store did not take it. When the caller is
        cancelled, requests that run go on.
        """
        told: list[Brought] = []
        runs: list[_Run] = []
        waited: set[asyncio.Task[None]] = set()
        for ref, indices in files:
            brought = Brought()
            told.append(brought)
            for missing in self._missing_runs(ref, indices, waited):
                runs.append(_Run(ref, self._cache.enter(ref, missing, keep=True), brought))
                brought.pages += missing
                brought.requests += 1
        if runs:
            task = self._cache.own([run.ref for run in runs], self._bring(runs))
            for run in runs:
                run.fill.task = task
            waited.add(task)
        if waited:
            await asyncio.wait(waited)
        for run in runs:
            run.told.error = run.told.error or run.fill.error
        return told

    def _missing_runs(
        self, ref: FileRef, indices: Sequence[int], waited: set[asyncio.Task[None]]
    ) -> list[list[int]]:
        """Pages that nobody is fetching, in runs; whoever fetches the others is added to `waited`."""
        runs: list[list[int]] = []
        for index in indices:
            page = PageId(ref.file_id, index)
            fill = self._cache.filling_page(page)
            if fill is not None:
                fill.keep = True
                if fill.task is not None:
                    waited.add(fill.task)
            elif not self._cache.pages.contains(page):
                if runs and index == runs[-1][-1] + 1:
                    runs[-1].append(index)
                else:
                    runs.append([index])
        return runs

    async def _bring(self, runs: Sequence[_Run]) -> None:
        loop = asyncio.get_running_loop()
        seat: Seat | None = None
        try:
            seat = await loop.run_in_executor(self._threads, self._fetch_and_put, runs, loop)
            for run in runs:
                self._end(run)
        except Exception as exc:  # noqa: BLE001 - a task's top: whoever waits gets the error
            for run in runs:
                run.error = run.error or exc
                self._end(run)
        finally:
            for run in runs:
                self._cache.leave(run.ref, run.fill)
            if seat is not None:  # only now can no reader come who would still read its memory
                seat.release(keep=any(run.fill.watched for run in runs))

    def _fetch_and_put(self, runs: Sequence[_Run], loop: asyncio.AbstractEventLoop) -> Seat:
        """In a thread. Only runs that somebody watches are told of one by one: the event loop has to be
        woken for it, which costs as much as a small file."""
        seat = self.source.borrow()
        try:
            self._fetch_into(seat, runs, loop)
        except BaseException:
            seat.release(keep=True)
            raise
        return seat

    def _fetch_into(self, seat: Seat, runs: Sequence[_Run], loop: asyncio.AbstractEventLoop) -> None:
        lengths = [run.fill.stop - run.fill.start for run in runs]
        for run, view in zip(runs, seat.buffers(lengths), strict=True):
            run.fill.attach(view)
        wanted = [
            Wanted(run.ref.relative, run.ref.version, run.fill.start, length)
            for run, length in zip(runs, lengths, strict=True)
        ]

        def progress(index: int, valid: int) -> None:
            runs[index].fill.progress_from_thread(valid)

        for fetched in seat.fetch(runs[0].ref.mount, wanted, progress):
            run = runs[fetched.index]
            self.pace_s += (fetched.seconds - self.pace_s) / 8 if self.pace_s else fetched.seconds
            if fetched.error is not None:
                run.error = fetched.error
            else:
                run.told.took.append((lengths[fetched.index], fetched.seconds))
                run.headers = self._headers(run, fetched)
            if run.fill.watched:
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(self._end, run)
            if run.error is None:
                self._cache.put_all(run.ref, run.fill, run.headers)

    def _end(self, run: _Run) -> None:
        if run.fill.complete:
            return
        if run.error is None:
            self._cache.metrics.fills += 1
            run.fill.finish(run.headers)
        else:
            self._cache.metrics.count_fill_error(run.error)
            run.fill.fail(as_answer(run.error, run.ref))

    def _headers(self, run: _Run, fetched: Fetched) -> list[PageHeader]:
        size, fill, now = self._cache.page_bytes, run.fill, time.time_ns()
        return [
            PageHeader(
                PageId(run.ref.file_id, index),
                min(size, fill.stop - index * size),
                size,
                block_bytes_for(size),
                sums.page_sum,
                sums.block_sums,
                now,
                run.ref.path,
            )
            for index, sums in enumerate(fetched.sums, fill.first_page)
        ]
