"""A worker that starts again keeps its pages: twenty thousand small ones, on a file system in memory."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_data import make_page, read
from page_store_child import Child, open_store, page_number

from kara_cache.page import PageId
from kara_worker.eviction import make_policy
from kara_worker.pages.file_page_store import FilePageStore

COUNT = 20_000
PAGE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The directory of a worker that put COUNT pages of some bytes each."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="kara-restart-", dir=memory if memory.is_dir() else None))
    store = _open(root / "cache")
    for number in range(COUNT):
        header, data = _page(number)
        assert store.put(header, data, group="m")
    store.close()
    yield root / "cache"
    shutil.rmtree(root)


def _open(root: Path) -> FilePageStore:
    return FilePageStore([root], 1 << 40, PAGE_BYTES, make_policy("s3fifo", guard=True), min_free_bytes=0)


def _page(number: int) -> tuple:  # type: ignore[type-arg]
    return make_page(f"/m/{number // 100}", number % 100, length=64 + number % 64, page_bytes=PAGE_BYTES)


def test_twenty_thousand_pages_are_kept_and_served_from_the_start(root: Path) -> None:
    store = _open(root)
    try:
        header, data = _page(12_345)
        assert read(store.get(header.page)) == data, "before anybody waited for the listing"
        assert not store.contains(PageId(header.page.file_id, 100))
        files = list(store.files())
        assert len(files) == COUNT // 100
        assert {file.path for file in files} == {f"/m/{number}" for number in range(COUNT // 100)}
        stats = store.stats()
        assert (stats.pages, stats.bytes, stats.loading) == (COUNT, COUNT * 8192, False)
        assert (stats.evictions, stats.corrupt, stats.rejections) == ({}, {}, {})
        assert all(read(store.get(_page(n)[0].page)) == _page(n)[1] for n in range(0, COUNT, 997))
    finally:
        store.close()


def test_pages_are_read_dropped_and_put_while_the_listing_runs(root: Path) -> None:
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    store = _open(copy)
    wrong: list[str] = []

    def work(first: int) -> None:
        for number in range(first, COUNT, 61):
            header, data = _page(number)
            stored = store.get(header.page)
            if stored is None or read(stored) != data:
                wrong.append(f"page {number}")
            if number % 3 == 0 and not (
                store.drop(header.page, "free") and store.put(header, data, group="m")
            ):
                wrong.append(f"page {number} did not come back")

    try:
        threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert wrong == []
        assert sum(file.pages for file in store.files()) == COUNT
        assert (store.stats().pages, store.stats().bytes) == (COUNT, COUNT * 8192)
    finally:
        store.close()


def test_a_smaller_capacity_is_reached_after_the_start(root: Path) -> None:
    copy = root.with_name("smaller")
    shutil.copytree(root, copy)
    capacity = COUNT * 8192 // 2
    store = FilePageStore([copy], capacity, PAGE_BYTES, make_policy("lru", guard=False), min_free_bytes=0)
    try:
        list(store.files())
        store.evict_to_low_watermark()
    finally:
        store.close()
    stats = store.stats()
    assert stats.bytes <= 0.9 * capacity
    assert stats.pages == COUNT - stats.evictions["capacity"]
    assert sum(1 for _ in copy.glob("pages/*/*")) == stats.pages


@pytest.mark.parametrize("when", [5, 23, 61])
def test_killed_while_it_puts(tmp_path: Path, when: int) -> None:
    root = tmp_path / "cache"
    with Child(root) as child:
        for number in range(when):
            assert child.ask(f"put {number}") == [True]
        child.kill()
    store = open_store(root, 1 << 30)
    try:
        for number in range(when):
            header, data = page_number(number)
            assert read(store.get(header.page)) == data
            assert store.verify(header.page)
        assert store.stats().pages == when
    finally:
        store.close()
