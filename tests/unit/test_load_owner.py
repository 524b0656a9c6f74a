"""One worker's part of a load job, over a real page cache and a store in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kara_cache.errors import WorkerBusy
from kara_cache.mount import Mount, MountTable
from kara_cache.ufs.memory import MemoryStore
from kara_worker.config import LoadConfig
from kara_worker.eviction import make_policy
from kara_worker.fetch.local import LocalSource
from kara_worker.file_facts import FileFacts
from kara_worker.jobs.batch import Action, Batch, Outcome, Piece, Reason
from kara_worker.jobs.courtesy import Look
from kara_worker.jobs.load_metrics import LoadMetrics
from kara_worker.jobs.owner import LoadOwner
from kara_worker.jobs.readers import ELSEWHERE_S
from kara_worker.metrics import WorkerMetrics
from kara_worker.mount_threads import MountThreads
from kara_worker.mounted_stores import MountedStores
from kara_worker.page_cache import RUN_BYTES, PageCache
from kara_worker.pages.file_page_store import FilePageStore

PAGE = 64 << 10
JOB, OTHER = "1" * 32, "2" * 32
Work = Callable[[LoadOwner, PageCache, MemoryStore], Awaitable[None]]


def with_owner(
    directory: Path,
    work: Work,
    *,
    clock: Callable[[], float] = time.monotonic,
    reads: Callable[[], int] = int,
    metrics_of_loads: LoadMetrics | None = None,
) -> None:
    async def run() -> None:
        store = MemoryStore()
        metrics = WorkerMetrics()
        stores = MountedStores(MountTable([Mount("m", "memory://x")]), metrics, opener=lambda _: store)
        pages = FilePageStore([directory], 20 * (PAGE + 4096), PAGE, make_policy("lru", guard=False))
        cache = PageCache(
            pages, stores, metrics, store_threads=2, fill_memory_bytes=1 << 24, write_queue_bytes=1 << 24
        )
        threads = ThreadPoolExecutor(2)
        facts = FileFacts(stores, MountThreads(2, "call"))
        config = LoadConfig(load_threads=2)
        source = LocalSource(stores, PAGE, seat_bytes=RUN_BYTES)
        owner = LoadOwner(
            cache,
            facts,
            metrics_of_loads or LoadMetrics(),
            config,
            reads=reads,
            source=source,
            peers=lambda worker: None,
            clock=clock,
        )
        try:
            await work(owner, cache, store)
        finally:
            owner.close()
            await cache.close(5.0)
            threads.shutdown()
            pages.close()

    asyncio.run(run())


def piece(store: MemoryStore, name: str, data: bytes) -> Piece:
    info = store.write(name, data)
    return Piece(f"/m/{name}", info.version, len(data), 0, len(data))


def counts(outcome: Outcome) -> tuple[int, int, int, int]:
    return outcome.pages, outcome.present, outcome.fetched, outcome.requests


def test_what_is_missing_is_fetched_once(tmp_path: Path) -> None:
    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        batch = Batch(JOB, Action.LOAD, (piece(store, "a", bytes(3 * PAGE - 1)), piece(store, "b", b"x")))
        first, twice = await asyncio.gather(owner.run(batch), owner.run(batch))
        assert first.pages == first.present == twice.present == 4
        assert first.fetched + twice.fetched == 4
        assert first.requests + twice.requests == 2
        assert counts(await owner.run(batch)) == (4, 4, 0, 0)

    with_owner(tmp_path, work)


def test_pages_of_this_job_are_told_from_older_ones(tmp_path: Path) -> None:
    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        one, two = piece(store, "a", bytes(PAGE)), piece(store, "b", bytes(PAGE))
        await owner.run(Batch(OTHER, Action.LOAD, (one,)))
        since_ns = time.time_ns()
        await owner.run(Batch(JOB, Action.LOAD, (two,)))
        again = await owner.run(Batch(JOB, Action.LOAD, (one, two), since_ns=since_ns))
        assert counts(again) == (2, 2, 1, 1)  # the second was fetched for this job, unheard perhaps
        forced = await owner.run(Batch(JOB, Action.LOAD, (one, two), since_ns=since_ns, force=True))
        assert counts(forced) == (2, 2, 2, 2)

    with_owner(tmp_path, work)


def test_failures_say_why_and_how_much(tmp_path: Path) -> None:
    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        gone, old = piece(store, "gone", bytes(2 * PAGE)), piece(store, "old", bytes(PAGE))
        store.delete("gone")
        store.write("old", b"new")
        unversioned = Piece("/m/u", "", 10, 0, 10)
        unknown = Piece("/n/u", "v", 10, 0, 10)
        batch = Batch(JOB, Action.LOAD, (gone, old, unversioned, unknown))
        outcome = await owner.run(batch)
        told = {failure.piece: (failure.reason, failure.pages, failure.of) for failure in outcome.failures}
        assert told == {
            0: (Reason.NOT_FOUND, 2, 2),
            1: (Reason.CHANGED, 1, 1),
            2: (Reason.UNVERSIONED, 1, 1),
            3: (Reason.NOT_FOUND, 1, 1),
        }
        assert (outcome.pages, outcome.present) == (5, 0)
        looked = await owner.run(Batch(OTHER, Action.LOOK, (gone,)))
        assert [(f.reason, f.pages) for f in looked.failures] == [(Reason.MISSING, 2)]

    with_owner(tmp_path, work)


def test_an_ended_job_takes_no_more_and_its_pages_may_go(tmp_path: Path) -> None:
    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        batch = Batch(JOB, Action.LOAD, tuple(piece(store, f"f{i}", bytes(PAGE)) for i in range(20)))
        assert (await owner.run(batch)).present == 20
        assert not cache.pages.has_room(PAGE)
        owner.end(JOB)
        assert cache.pages.has_room(20 * PAGE)
        with pytest.raises(WorkerBusy, match="was ended"):  # it was on its way when the end overtook it
            await owner.run(batch)
        assert cache.pages.has_room(20 * PAGE)

    with_owner(tmp_path, work)


def test_a_running_batch_ends_with_its_job(tmp_path: Path) -> None:
    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        batch = Batch(JOB, Action.LOAD, (piece(store, "a", bytes(PAGE)),), requests_per_s=1e-3)
        await owner.run(batch)  # the first request needs no wait
        slow = Batch(JOB, Action.LOAD, (piece(store, "b", bytes(PAGE)),), requests_per_s=1e-3)
        running = asyncio.ensure_future(owner.run(slow))
        await asyncio.sleep(0.05)
        assert not running.done()
        owner.end(JOB)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 10)

    with_owner(tmp_path, work)


def test_a_job_that_nobody_speaks_of_is_forgotten_and_may_come_back(tmp_path: Path) -> None:
    now = 0.0

    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        nonlocal now
        batch = Batch(JOB, Action.LOAD, tuple(piece(store, f"f{i}", bytes(PAGE)) for i in range(20)))
        await owner.run(batch)
        now = 599.0
        owner.forget_idle()
        assert not cache.pages.has_room(PAGE)
        now = 1201.0
        owner.forget_idle()
        assert cache.pages.has_room(PAGE)
        assert (await owner.run(batch)).present == 20

    with_owner(tmp_path, work, clock=lambda: now)


def test_it_tells_of_readers_and_makes_way_for_those_of_others(tmp_path: Path) -> None:
    now, reads, metrics = [100.0], [0], LoadMetrics()
    busy = Look(late_s=1.0, wait_s=1.0, spent=1.0)

    async def work(owner: LoadOwner, cache: PageCache, store: MemoryStore) -> None:
        pieces = (piece(store, "a", b"x"),)
        owner.make_way(busy)
        assert (await owner.run(Batch(JOB, Action.LOOK, pieces))).readers is False
        assert metrics.limit() == 2  # nobody reads
        reads[0] += 1
        owner.make_way(busy)
        assert (await owner.run(Batch(JOB, Action.LOOK, pieces))).readers is True
        assert metrics.limit() == 1
        now[0] += 2.0
        owner.make_way(busy)
        assert (await owner.run(Batch(JOB, Action.LOOK, pieces, readers=True))).readers is False
        assert metrics.limit() == 2
        owner.make_way(busy)
        assert metrics.limit() == 1  # somebody reads from another worker
        now[0] += ELSEWHERE_S
        owner.make_way(busy)
        assert metrics.limit() == 2

    with_owner(tmp_path, work, clock=lambda: now[0], reads=lambda: reads[0], metrics_of_loads=metrics)
