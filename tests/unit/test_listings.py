"""Listings that a worker keeps: which, for how long, in how much memory, and what is found in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from hashlib import blake2b
from typing import Any

import pytest

from kara_cache.mount import Freshness, Mount, MountTable
from kara_cache.ufs.base import FileInfo
from kara_worker.file_facts import FileFacts
from kara_worker.listings import PAGE_ENTRIES, Listings
from kara_worker.metrics import WorkerMetrics
from kara_worker.mount_threads import MountThreads
from kara_worker.mounted_stores import MountedStores


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Directory:
    """A store that is one directory of `count` files, and says how often and how far it was listed."""

    url = "memory://many"

    def __init__(self, count: int) -> None:
        self.count = count
        self.listed = 0  # listings that were begun
        self.given = 0  # entries of all of them
        self.looks = 0
        self.fails_at = -1

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        self.listed += 1
        if path == "none":
            raise FileNotFoundError(2, "No such file or directory", path)
        for number in range(self.count):
            if number == self.fails_at:
                self.fails_at = -1
                raise FileNotFoundError(2, "gone meanwhile", path)
            self.given += 1
            yield self.file(number)

    def info(self, path: str) -> FileInfo:
        self.looks += 1
        return self.file(int(path[3:]))

    def file(self, number: int) -> FileInfo:
        return FileInfo(f"d/f{number:08}", number, blake2b(b"%d" % number, digest_size=16).hexdigest(), 1.5)

    def close(self) -> None:
        pass


class Place:
    def __init__(self, store: Directory, freshness: str, **options: Any) -> None:
        self.store = store
        self.clock = Clock()
        mounts = MountTable([Mount("m", "memory://many", freshness=Freshness.parse(freshness))])
        self.stores = MountedStores(mounts, WorkerMetrics(), opener=lambda _: store)  # type: ignore[arg-type,return-value]
        self.threads = MountThreads(4, "call")
        self.listings = Listings(self.stores, self.threads, clock=self.clock, **options)

    async def names(self, path: str = "/m/d", **options: Any) -> list[str]:
        return await drain(self.listings.pages(path, recursive=False, **options))


async def drain(pages: AsyncGenerator[bytes, None]) -> list[str]:
    return [json.loads(line)["path"] async for page in pages for line in page.splitlines()]


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work(), 60)

    asyncio.run(bounded())


def paths(count: int) -> list[str]:
    return [f"/m/d/f{number:08}" for number in range(count)]


@pytest.mark.parametrize(
    ("freshness", "later", "much_later"),
    [("revalidate", 2, 3), ("max_age=90s", 1, 2), ("immutable", 1, 1)],
)
def test_a_listing_is_as_fresh_as_its_mount_asks_for(freshness: str, later: int, much_later: int) -> None:
    async def work() -> None:
        place = Place(Directory(2500), freshness)
        assert await place.names() == paths(2500)
        place.clock.now += 60
        assert await place.names() == paths(2500)
        assert place.store.listed == later
        place.clock.now += 60
        assert await place.names() == paths(2500)
        assert place.store.listed == much_later

    run(work)


def test_who_has_written_gets_what_was_asked_of_the_store_since() -> None:
    async def work() -> None:
        place = Place(Directory(10), "immutable")
        await place.names()
        place.clock.now += 5
        place.store.count = 11  # the caller's own file, written through another worker 3 s ago
        assert await place.names(max_age_s=3.0) == paths(11)
        assert place.store.listed == 2
        place.clock.now += 1
        assert await place.names(max_age_s=4.0) == paths(11)
        assert place.store.listed == 2, "that one is younger than the change"

    run(work)


def test_a_change_through_this_worker_drops_what_it_concerns() -> None:
    async def work() -> None:
        place = Place(Directory(10), "immutable")
        for changed, listed in (("/m/d/new", 2), ("/m/d/deep/er", 3), ("/m/elsewhere/x", 3), ("/m/d", 4)):
            await place.names()
            place.listings.forget(changed)
            await place.names()
            assert place.store.listed == listed, changed
        place.listings.clear()
        assert place.listings.held_bytes == 0

    run(work)


def test_the_first_page_does_not_wait_for_the_last() -> None:
    async def work() -> None:
        for freshness in ("revalidate", "immutable"):
            store = Directory(10 * PAGE_ENTRIES)
            pages = Place(store, freshness).listings.pages("/m/d", recursive=False)
            first = await anext(pages)
            assert first.count(b"\n") == PAGE_ENTRIES
            assert store.given <= PAGE_ENTRIES + 1
            assert len(await drain(pages)) == 9 * PAGE_ENTRIES

    run(work)


def test_those_who_ask_at_the_same_time_share_one_listing() -> None:
    async def work() -> None:
        place = Place(Directory(3500), "immutable")
        found = await asyncio.gather(*(place.names() for _ in range(8)))
        assert all(names == paths(3500) for names in found)
        assert place.store.listed == 1
        assert place.store.given == 3500

    run(work)


def test_what_fails_is_not_kept_and_not_taken_for_the_end() -> None:
    async def work() -> None:
        place = Place(Directory(3500), "immutable")
        with pytest.raises(FileNotFoundError):
            await place.names("/m/none")
        place.store.fails_at = 2100
        found = await asyncio.gather(*(place.names() for _ in range(4)), return_exceptions=True)
        assert sum(isinstance(names, FileNotFoundError) for names in found) == 1
        assert all(names == paths(3500) for names in found if not isinstance(names, Exception))
        assert await place.names() == paths(3500)

    run(work)


def test_a_reader_that_leaves_costs_the_others_nothing() -> None:
    async def work() -> None:
        place = Place(Directory(3500), "immutable")
        leaving = place.listings.pages("/m/d", recursive=False)
        await anext(leaving)
        asked = asyncio.ensure_future(anext(leaving))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
        assert await place.names() == paths(3500)
        assert await place.names() == paths(3500)

    run(work)


def test_what_does_not_fit_comes_from_the_store_and_takes_no_memory() -> None:
    async def work() -> None:
        place = Place(Directory(20 * PAGE_ENTRIES), "immutable", budget_bytes=150_000)
        for _ in range(3):
            assert await place.names() == paths(20 * PAGE_ENTRIES)
            assert place.listings.held_bytes == 0
        given = place.store.given
        place.clock.now += 3600
        assert await place.names() == paths(20 * PAGE_ENTRIES)
        assert place.store.given > given, "after a while it is tried again"
        place.store.count = 100
        place.clock.now += 3600
        await place.names()
        await place.names("/m/d2")
        assert 0 < place.listings.held_bytes <= 150_000

    run(work)


def test_the_listing_used_longest_ago_makes_room() -> None:
    async def work() -> None:
        place = Place(Directory(1000), "immutable", budget_bytes=100_000)
        for number in range(20):
            await place.names(f"/m/d{number}")
            assert place.listings.held_bytes <= 100_000
        assert place.store.listed == 20
        await place.names("/m/d19")
        assert place.store.listed == 20
        await place.names("/m/d0")
        assert place.store.listed == 21

    run(work)


def test_facts_of_files_come_from_a_listing() -> None:
    async def work() -> None:
        store = Directory(2500)
        place = Place(store, "max_age=60s")
        facts = FileFacts(place.stores, place.threads, clock=place.clock)
        await drain(facts.listings.pages("/m/d", recursive=False))
        for number in (0, 1, 999, 1000, 1001, 2499):
            found = await facts.info(f"/m/d/f{number:08}")
            assert found == FileInfo(f"/m/d/f{number:08}", number, store.file(number).version, 1.5)
        assert store.looks == 0
        assert facts.listings.find("/m/d/f0000000") is None
        assert facts.listings.find("/m/a") is None
        facts.forget("/m/d/f00000001")
        await facts.info("/m/d/f00000001")
        assert store.looks == 1, "changed through this worker"
        await drain(facts.listings.pages("/m/d", recursive=False))
        place.clock.now += 61
        await facts.info("/m/d/f00000002")
        assert store.looks == 2, "too old"

    run(work)


@pytest.mark.parametrize("count", [30_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_memory_of_a_large_directory_is_what_the_documentation_says(count: int) -> None:
    async def work() -> None:
        place = Place(Directory(count), "immutable")
        for _ in range(2):
            entries = 0
            async for page in place.listings.pages("/m/d", recursive=False):
                entries += page.count(b"\n")
            assert entries == count
        assert place.store.given == count
        assert place.listings.held_bytes <= 60 * count
        found = place.listings.find(f"/m/d/f{count - 1:08}")
        assert found is not None
        assert found[1].size == count - 1

    run(work)
