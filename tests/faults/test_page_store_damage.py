"""Page files that are not what they should be: found, dropped, counted by kind, never served as good."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_data import PAGE_BYTES, Page, file_of, make_page, read

from kara_cache.checksum import checksum
from kara_cache.page import HEADER_BYTES
from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.pages.file_page_store import FilePageStore

LENGTH = 10_000  # three blocks of 4 KiB, the last one short
HEADER_REGIONS = {
    "magic": 0,
    "format": 8,
    "page_bytes": 12,
    "file_id": 16,
    "index": 32,
    "created_ns": 40,
    "page_sum": 48,
    "length": 56,
    "block_bytes": 60,
    "blocks": 64,
    "path_bytes": 66,
    "zero": 68,
    "block sum, first": 72,
    "block sum, last": 72 + 2 * 8,
    "path": 72 + 3 * 8,
    "padding": 3000,
    "header_sum": 4088,
    "header_sum, last byte": 4095,
}
DATA_REGIONS = {"first": 0, "block edge": 4 << 10, "middle": LENGTH // 2, "last": LENGTH - 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(root: Path) -> Iterator[FilePageStore]:
    with_policy = FilePageStore([root], 64 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
    yield with_policy
    with_policy.close()


def put(store: FilePageStore, path: str = "/m/a", index: int = 0, *, length: int = LENGTH) -> Page:
    page = make_page(path, index, length=length)
    assert store.put(page[0], page[1], group="m")
    return page


def flip(path: Path, offset: int, mask: int = 0x01) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def assert_dropped(store: FilePageStore, page: Page, where: str) -> None:
    identity = page[0].page
    assert store.get(identity) is None
    assert store.get(identity) is None, "and counted once"
    stats = store.stats()
    assert stats.corrupt == {where: 1}
    assert stats.evictions == {"corrupt": 1}
    assert (stats.pages, stats.disk_errors) == (1, 0), "the other page stays"
    assert store.put(page[0], page[1], group="m"), "it can be fetched again"
    assert read(store.get(identity)) == page[1]


@pytest.mark.parametrize("region", HEADER_REGIONS)
def test_a_flipped_bit_in_the_header(store: FilePageStore, root: Path, region: str) -> None:
    page, _ = put(store), put(store, "/m/other")
    flip(file_of(root, page[0].page), HEADER_REGIONS[region])
    assert_dropped(store, page, "header")


@pytest.mark.parametrize("region", DATA_REGIONS)
def test_a_flipped_bit_in_the_data_is_found_by_whoever_reads_it(
    store: FilePageStore, root: Path, region: str
) -> None:
    page, _ = put(store), put(store, "/m/other")
    flip(file_of(root, page[0].page), HEADER_BYTES + DATA_REGIONS[region], 0x80)
    stored = store.get(page[0].page)
    assert stored is not None
    header = stored.header
    first, last = header.cover(DATA_REGIONS[region], DATA_REGIONS[region] + 1)
    assert not header.verify_blocks(read(stored)[first:last], first)
    assert checksum(read(stored)) != header.page_sum
    assert not store.verify(page[0].page)
    assert store.peek(page[0].page) is None, "also when it was open"
    assert_dropped(store, page, "data")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, HEADER_BYTES + LENGTH - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_fails_verification(store: FilePageStore, root: Path, offset: int, bit: int) -> None:
    page = put(store)
    flip(file_of(root, page[0].page), offset, 1 << bit)
    assert not store.verify(page[0].page)
    assert not store.contains(page[0].page)


@pytest.mark.parametrize("size", range(0, HEADER_BYTES + 5000, 512))
def test_a_torn_page(store: FilePageStore, root: Path, size: int) -> None:
    page, _ = put(store, length=5000), put(store, "/m/other")
    os.truncate(file_of(root, page[0].page), size)
    assert_dropped(store, page, "truncated")


@pytest.mark.parametrize("more", [1, 4096])
def test_a_page_that_grew(store: FilePageStore, root: Path, more: int) -> None:
    page, _ = put(store), put(store, "/m/other")
    os.truncate(file_of(root, page[0].page), HEADER_BYTES + LENGTH + more)
    assert_dropped(store, page, "truncated")


def test_data_cut_off_while_the_page_is_open(store: FilePageStore, root: Path) -> None:
    page, _ = put(store), put(store, "/m/other")
    assert store.get(page[0].page) is not None
    os.truncate(file_of(root, page[0].page), HEADER_BYTES + 100)
    assert not store.verify(page[0].page)
    assert_dropped(store, page, "truncated")


@pytest.mark.parametrize("second", [("/m/a", 1, LENGTH), ("/m/b", 0, LENGTH), ("/m/b", 7, 999)])
def test_two_page_files_swapped(store: FilePageStore, root: Path, second: tuple[str, int, int]) -> None:
    path, index, length = second
    pages = [put(store), put(store, path, index, length=length)]
    one, two = (file_of(root, page[0].page) for page in pages)
    one.rename(root / "aside")
    two.rename(one)
    (root / "aside").rename(two)
    for page in pages:
        assert store.get(page[0].page) is None
    stats = store.stats()
    assert (stats.corrupt, stats.pages, stats.bytes) == ({"identity": 2}, 0, 0)


def test_a_copy_of_another_version(store: FilePageStore, root: Path) -> None:
    page, _ = put(store), put(store, "/m/other")
    newer = make_page("/m/a", version="v2", length=LENGTH)
    store.put(newer[0], newer[1], group="m")
    shutil.copyfile(file_of(root, newer[0].page), file_of(root, page[0].page))
    assert store.get(page[0].page) is None
    assert store.stats().corrupt == {"identity": 1}
    assert read(store.get(newer[0].page)) == newer[1]


def _symlink(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("replace", [_symlink, _fifo, _directory])
def test_something_else_in_the_place_of_a_page(
    store: FilePageStore, root: Path, replace: Callable[[Path], None]
) -> None:
    page, _ = put(store), put(store, "/m/other")
    place = file_of(root, page[0].page)
    replace(place)
    if replace is not _directory:
        assert_dropped(store, page, "identity")
        return
    assert store.get(page[0].page) is None
    for _ in range(5):
        assert not store.put(page[0], page[1], group="m"), (
            "nothing of ours is put in the place of a directory"
        )
    assert place.is_dir()
    assert not list(root.rglob("tmp.*")), "and nothing left behind"
    assert store.stats().corrupt == {"identity": 1}
    assert store.stats().bytes == 4096 + 12_288, "only the other page is counted"
    assert store.get(make_page("/m/other", length=LENGTH)[0].page) is not None, (
        "the directory is in use still"
    )


def test_a_page_without_rights(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody whose rights count")
    shelf = Path("/dev/shm") / f"kara-rights-{os.getpid()}"
    shelf.mkdir(mode=0o755)
    os.chown(shelf, 65534, 65534)
    os.seteuid(65534)
    try:
        store = FilePageStore([shelf / "c"], 64 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
        page, _ = put(store), put(store, "/m/other")
        file_of(shelf / "c", page[0].page).chmod(0)
        assert store.get(page[0].page) is None
        stats = store.stats()
        assert (stats.pages, stats.evictions, stats.disk_errors) == (1, {"lost": 1}, 1)
        assert store.put(page[0], page[1], group="m")
        assert read(store.get(page[0].page)) == page[1]
        store.close()
    finally:
        os.seteuid(0)
        shutil.rmtree(shelf)


@pytest.mark.parametrize("where", ["header", "data", "truncated"])
def test_damage_of_the_past_is_found_after_a_restart(store: FilePageStore, root: Path, where: str) -> None:
    page, other = put(store), put(store, "/m/other")
    store.close()
    place = file_of(root, page[0].page)
    if where == "truncated":
        os.truncate(place, 6000)
    else:
        flip(place, 50 if where == "header" else HEADER_BYTES + 50)
    again = FilePageStore([root], 64 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
    try:
        assert not again.verify(page[0].page)
        assert again.stats().corrupt == {where: 1}
        assert [file.path for file in again.files()] == ["/m/other"]
        assert again.verify(other[0].page)
    finally:
        again.close()
