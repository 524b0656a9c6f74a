"""Fills: one request for neighbours, one fill however many ask, and stores that hang."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kara_cache.errors import CacheError
from kara_cache.mount import Mount, MountTable
from kara_cache.ufs.memory import MemoryStore
from kara_worker.bring import Bringing
from kara_worker.eviction import make_policy
from kara_worker.fetch.local import LocalSource
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores
from kara_worker.page_cache import RUN_BYTES, CachedPart, FileRef, FillPart, PageCache, Part
from kara_worker.pages.file_page_store import FilePageStore

PAGE = 64 << 10
TIMEOUT_S = 20.0


class HeldStore(MemoryStore):
    """Notes every read, and lets none go on while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int, int]] = []
        self.told: list[bool] = []  # whether anybody wants to know how a read goes on
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def read_into(self, path: str, start: int, buffer: memoryview, **more: Any) -> int:
        self.reads.append((path, start, len(buffer)))
        self.told.append(more["progress"] is not None)
        self.asked.set()
        assert self.go_on.wait(TIMEOUT_S)
        return super().read_into(path, start, buffer, **more)


Work = Callable[[PageCache, HeldStore, HeldStore], Awaitable[None]]


def with_cache(directory: Path, work: Work, *, threads: int = 2) -> None:
    """Over mounts a and b, each with a store of its own."""

    async def run() -> None:
        found = {"a": HeldStore(), "b": HeldStore()}
        metrics = WorkerMetrics()
        mounts = MountTable([Mount(name, f"memory://{name}") for name in found])
        stores = MountedStores(mounts, metrics, opener=lambda mount: found[mount.name])
        pages = FilePageStore([directory], 1 << 26, PAGE, make_policy("lru", guard=False))
        cache = PageCache(
            pages,
            stores,
            metrics,
            store_threads=threads,
            fill_memory_bytes=1 << 20,
            write_queue_bytes=1 << 24,
        )
        try:
            await asyncio.wait_for(work(cache, found["a"], found["b"]), TIMEOUT_S)
        finally:
            for store in found.values():
                store.go_on.set()
            await cache.close(5.0)
            pages.close()

    asyncio.run(run())


def ref(cache: PageCache, store: MemoryStore, path: str, data: bytes) -> FileRef:
    name = path.rpartition("/")[2]
    info = store.write(name, data)
    return cache.ref(path, info.version, len(data))


async def data_of(part: Part) -> bytes:
    if isinstance(part, CachedPart):
        at = part.stored.offset + part.start - part.stored.header.page.index * PAGE
        return os.pread(part.stored.fd, part.stop - part.start, at)
    while not await part.fill.wait_complete(TIMEOUT_S):
        pass
    return bytes(part.fill.view(part.start, part.stop))


async def read(cache: PageCache, file: FileRef, start: int, stop: int) -> bytes:
    return b"".join([await data_of(part) for part in await cache.parts(file, start, stop)])


async def settled(cache: PageCache) -> None:
    while cache.loading:
        await asyncio.sleep(0.001)


def test_neighbours_come_with_one_request(tmp_path: Path) -> None:
    async def work(cache: PageCache, store: HeldStore, _: HeldStore) -> None:
        data = os.urandom(10 * PAGE)
        file = ref(cache, store, "/a/f", data)
        assert await read(cache, file, 3 * PAGE, 4 * PAGE) == data[3 * PAGE : 4 * PAGE]
        await settled(cache)
        assert await read(cache, file, 0, len(data)) == data
        first, *others = [(start, length) for _, start, length in store.reads]
        assert first == (3 * PAGE, PAGE)
        # up to what is there, and from there on: two threads ask, in any order
        assert sorted(others) == [(0, 3 * PAGE), (4 * PAGE, 6 * PAGE)]

    with_cache(tmp_path, work)


def test_who_asks_meanwhile_gets_what_is_on_its_way(tmp_path: Path) -> None:
    async def work(cache: PageCache, store: HeldStore, _: HeldStore) -> None:
        data = os.urandom(2 * PAGE)
        file = ref(cache, store, "/a/f", data)
        store.go_on.clear()
        readers = [asyncio.ensure_future(read(cache, file, 0, len(data))) for _ in range(16)]
        await asyncio.to_thread(store.asked.wait, TIMEOUT_S)
        store.go_on.set()
        assert await asyncio.gather(*readers) == [data] * 16
        assert len(store.reads) == 1

    with_cache(tmp_path, work)


def test_a_store_that_hangs_keeps_only_its_own_readers_waiting(tmp_path: Path) -> None:
    async def work(cache: PageCache, hanging: HeldStore, other: HeldStore) -> None:
        warm = ref(cache, hanging, "/a/warm", b"warm")
        assert await read(cache, warm, 0, 4) == b"warm"
        await settled(cache)
        hanging.go_on.clear()
        # more requests than threads, and more bytes than the memory for fills
        stuck = [ref(cache, hanging, f"/a/{number}", bytes(4 * PAGE)) for number in range(8)]
        waiting = [asyncio.ensure_future(read(cache, file, 0, 4 * PAGE)) for file in stuck]
        hanging.asked.clear()
        await asyncio.to_thread(hanging.asked.wait, TIMEOUT_S)
        assert await read(cache, warm, 0, 4) == b"warm"
        for number in range(8):
            data = os.urandom(PAGE)
            assert await read(cache, ref(cache, other, f"/b/{number}", data), 0, PAGE) == data
        assert not any(task.done() for task in waiting)
        hanging.go_on.set()
        assert await asyncio.gather(*waiting) == [bytes(4 * PAGE)] * 8

    with_cache(tmp_path, work)


def test_readers_join_what_a_load_brings(tmp_path: Path) -> None:
    async def work(cache: PageCache, store: HeldStore, _: HeldStore) -> None:
        texts = [os.urandom(PAGE + number) for number in range(3)]
        files = [ref(cache, store, f"/a/{number}", text) for number, text in enumerate(texts)]
        source = LocalSource(cache.stores, PAGE, seat_bytes=RUN_BYTES)
        with ThreadPoolExecutor(1) as threads:
            bringing = Bringing(cache, source, threads)
            store.go_on.clear()
            load = asyncio.ensure_future(bringing.bring([(file, [0, 1]) for file in files]))
            await asyncio.to_thread(store.asked.wait, TIMEOUT_S)
            parts = [await cache.parts(file, 0, file.size) for file in files]
            assert all(isinstance(part, FillPart) for of_one in parts for part in of_one)
            store.go_on.set()
            for text, of_one in zip(texts, parts, strict=True):
                assert b"".join([await data_of(part) for part in of_one]) == text
            told = await load
        assert [(brought.pages, brought.requests, brought.error) for brought in told] == [
            ([0, 1], 1, None)
        ] * 3
        assert len(store.reads) == 3
        again = await Bringing(cache, source, threads).bring([(files[0], [0, 1])])
        assert (again[0].pages, again[0].requests) == ([], 0)

    with_cache(tmp_path, work)


def test_one_file_that_fails_leaves_the_others_of_its_group(tmp_path: Path) -> None:
    async def work(cache: PageCache, store: HeldStore, _: HeldStore) -> None:
        files = [ref(cache, store, f"/a/{number}", b"x") for number in range(3)]
        store.delete("1")
        source = LocalSource(cache.stores, PAGE, seat_bytes=RUN_BYTES)
        with ThreadPoolExecutor(1) as threads:
            told = await Bringing(cache, source, threads).bring([(file, [0]) for file in files])
        assert [type(brought.error) for brought in told] == [type(None), FileNotFoundError, type(None)]
        assert not cache.loading
        assert await read(cache, files[2], 0, 1) == b"x"

    with_cache(tmp_path, work)


def test_a_small_fill_is_told_of_once_and_a_large_one_as_it_goes(tmp_path: Path) -> None:
    async def work(cache: PageCache, store: HeldStore, _: HeldStore) -> None:
        for name, count in (("small", 4 * PAGE), ("large", 4 * PAGE + 1)):
            data = os.urandom(count)
            assert await read(cache, ref(cache, store, f"/a/{name}", data), 0, count) == data
        assert store.told == [False, True]

    with_cache(tmp_path, work)


def test_a_cache_that_is_closed_fails_who_still_asks(tmp_path: Path) -> None:
    async def work(cache: PageCache, store: HeldStore, _: HeldStore) -> None:
        data = os.urandom(PAGE)
        file = ref(cache, store, "/a/f", data)
        assert await read(cache, file, 0, PAGE) == data
        await settled(cache)
        assert cache.pages.free("/a/f", recursive=False)[0] == 1
        await cache.close(5.0)
        with pytest.raises(CacheError, match="the fill failed"):
            await read(cache, file, 0, PAGE)

    with_cache(tmp_path, work)
