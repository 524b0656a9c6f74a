"""Disks that are full, read-only or short of descriptors: real file systems, as small as they come."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from page_data import FOOTPRINT, PAGE_BYTES, Page, file_of, make_page, read

from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.segments.page_store import SegmentPageStore

pytestmark = pytest.mark.fault


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system of some MiB; `ext4` on a file, or `tmpfs`."""
    mounted: list[Path] = []

    def mount_it(kind: str, mib: int) -> Path:
        if os.geteuid() != 0:
            pytest.skip("needs root, to mount a file system")
        place = tmp_path / f"{kind}-{len(mounted)}"
        place.mkdir()
        try:
            if kind == "tmpfs":
                _run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", place)
            else:
                image = place.with_suffix(".img")
                image.touch()
                os.truncate(image, mib << 20)
                _run("mkfs.ext4", "-q", "-m", "0", image)
                _run("mount", "-o", "loop", image, place)
        except (subprocess.CalledProcessError, FileNotFoundError) as exc:
            pytest.skip(f"no {kind} can be mounted here: {getattr(exc, 'stderr', exc)!r}")
        mounted.append(place)
        return place

    yield mount_it
    for place in mounted:
        _run("umount", "-l", place)


@pytest.fixture
def open_store() -> Iterator[Callable[..., FilePageStore]]:
    opened: list[FilePageStore] = []

    def open_it(*roots: Path, capacity_bytes: int = 1 << 30, **options: Any) -> FilePageStore:
        options = {"min_free_bytes": 0, **options}
        opened.append(FilePageStore(roots, capacity_bytes, PAGE_BYTES, LeastRecentlyUsed(), **options))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


Mount = Callable[[str, int], Path]
Open = Callable[..., FilePageStore]


def put(store: FilePageStore, page: Page) -> bool:
    return store.put(page[0], page[1], group="m")


def free_bytes(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def fill(place: Path, leave: int = 0) -> Path:
    filler = place / "somebody's data"
    with open(filler, "wb") as file:
        try:
            while free_bytes(place) > leave:
                file.write(b"x" * min(4096, free_bytes(place) - leave))
                file.flush()
        except OSError:
            pass
    return filler


def pages_of(path: str, count: int) -> list[Page]:
    return [make_page(path, index) for index in range(count)]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_others_filled(kind: str, mount: Mount, open_store: Open) -> None:
    place = mount(kind, 8)
    store = open_store(place)
    filler = fill(place)
    pages = pages_of("/m/a", 5)
    assert not any(put(store, page) for page in pages)
    stats = store.stats()
    assert (stats.pages, stats.bytes, stats.rejections, stats.disk_errors) == (0, 0, {"full": 5}, 0)
    assert not list(place.rglob("tmp.*"))
    filler.unlink()
    assert all(put(store, page) for page in pages)
    assert all(store.verify(page[0].page) for page in pages)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("store_kind", [FilePageStore, SegmentPageStore])
def test_a_worker_starts_on_a_disk_that_others_filled(
    kind: str, store_kind: type[FilePageStore] | type[SegmentPageStore], mount: Mount
) -> None:
    """Else a node whose disk ran full would lose the cache with the next restart."""
    place = mount(kind, 8)
    pages = pages_of("/m/a", 10)
    with closing(store_kind([place], 2 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)) as store:
        assert all(store.put(page[0], page[1], group="m") for page in pages)
    filler = fill(place)
    with closing(store_kind([place], 2 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)) as store:
        assert all(store.verify(page[0].page) for page in pages)
        for page in pages_of("/m/b", 3):  # whether there is room is the layout's
            store.put(page[0], page[1], group="m")
        assert (store.stats().disk_errors, store.stats().corrupt) == (0, {})
        filler.unlink()
        new = pages_of("/m/c", 3)
        assert all(store.put(page[0], page[1], group="m") for page in new)
        assert all(store.verify(page[0].page) for page in new)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_smaller_than_the_capacity(kind: str, mount: Mount, open_store: Open) -> None:
    """Old pages go for new ones, and every page that is there is whole."""
    place = mount(kind, 8)
    store = open_store(place)
    pages = pages_of("/m/a", 300)
    stored = [put(store, page) for page in pages]
    stats = store.stats()
    assert stats.pages == sum(stored) - stats.evictions["capacity"]
    assert stats.pages > 60
    assert sum(stored[150:]) > 140, "a full disk takes new pages in"
    for page in pages:
        found = store.get(page[0].page)
        assert found is None or read(found) == page[1]
    assert (store.stats().corrupt, store.stats().disk_errors) == ({}, 0)
    assert not list(place.rglob("tmp.*"))


def believes_in_room(store: FilePageStore) -> None:
    """Whatever the disk says: there is room for the next page, as with a file system that counts too much."""
    choose = store._files.choose
    store._files.choose = lambda page, size, **_: choose(page, 0, spare=False)  # type: ignore[method-assign]


def test_disk_runs_full_in_the_middle_of_a_page(mount: Mount, open_store: Open) -> None:
    """The free bytes that were reported are gone when the data comes: half of it is written, then ENOSPC."""
    place = mount("tmpfs", 4)
    store = open_store(place)
    fill(place, leave=PAGE_BYTES // 2)
    believes_in_room(store)
    page = make_page("/m/second")
    assert not put(store, page)
    assert store.get(page[0].page) is None
    stats = store.stats()
    assert (stats.pages, stats.bytes, stats.rejections, stats.disk_errors) == (0, 0, {"full": 1}, 0)
    assert not list(place.rglob("tmp.*"))
    assert free_bytes(place) >= PAGE_BYTES // 2


def test_an_old_page_goes_where_the_disk_turns_out_to_be_full(mount: Mount, open_store: Open) -> None:
    place = mount("tmpfs", 4)
    store = open_store(place)
    old, new = make_page("/m/first"), make_page("/m/second")
    put(store, old)
    fill(place, leave=PAGE_BYTES // 2)
    believes_in_room(store)
    assert put(store, new)
    assert store.verify(new[0].page)
    assert store.get(old[0].page) is None
    stats = store.stats()
    assert (stats.pages, stats.bytes, stats.rejections) == (1, FOOTPRINT, {})
    assert not list(place.rglob("tmp.*"))


def test_a_full_disk_whose_room_is_held_by_readers(mount: Mount) -> None:
    """Other processes have descriptors of all segments: what these hold comes back, the cache stays."""
    place = mount("tmpfs", 16)
    store = SegmentPageStore([place], 1 << 30, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
    held: list[int] = []
    try:
        taken = 0
        for page in pages_of("/m/a", 600):
            taken += store.put(page[0], page[1], group="m")
            stored = store.get(page[0].page)
            if stored is not None:
                assert read(stored) == page[1]
                stored.hand_over()
                held.append(os.dup(stored.fd))
        stats = store.stats()
        assert taken > 580
        assert stats.pages > 100, "of some 230 that fit"
        assert (stats.corrupt, stats.disk_errors) == ({}, 0)
    finally:
        store.close()
        for descriptor in held:
            os.close(descriptor)


def test_some_bytes_of_the_disk_stay_free(mount: Mount, open_store: Open) -> None:
    place = mount("tmpfs", 16)
    store = open_store(place, min_free_bytes=8 << 20)
    for page in pages_of("/m/a", 300):
        assert put(store, page)
        assert free_bytes(place) >= 8 << 20
    assert store.stats().evictions["capacity"] > 100
    fill(place, leave=4 << 20)
    before = store.stats().pages
    for page in pages_of("/m/b", 20):
        assert put(store, page), "the cache stays in use, and does not grow"
    assert store.stats().pages <= before


def test_one_percent_stays_free_by_default(mount: Mount, open_store: Open) -> None:
    place = mount("tmpfs", 60)
    store = open_store(place, min_free_bytes=None)
    assert not put(store, make_page("/m/a")), "64 MiB at least"
    assert store.stats().rejections == {"full": 1}


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_becomes_read_only_is_given_up_and_taken_back(
    kind: str, mount: Mount, open_store: Open, tmp_path: Path
) -> None:
    failing, healthy = mount(kind, 32), tmp_path / "healthy"
    store = open_store(failing, healthy)
    pages = pages_of("/m/a", 200)
    # weighted by size, nearly all would go to the larger disk
    for directory in store._files.directories:
        directory.total_bytes = 1
    assert all(put(store, page) for page in pages)
    on_failing = {page[0].page for page in pages if list(failing.glob(f"pages/*/*.{page[0].page.index:x}.*"))}
    assert 60 < len(on_failing) < 140
    _run("mount", "-o", "remount,ro", failing)
    more = pages_of("/m/b", 40)
    answers = [put(store, page) for page in more]
    assert answers.count(False) == 3, "three failures, then it is out of use"
    assert all(answers[-20:])
    stats = store.stats()
    assert (stats.evictions, stats.disk_errors) == ({"lost": len(on_failing)}, 3)
    assert stats.pages == 200 - len(on_failing) + 37
    for page in pages:
        found = store.get(page[0].page)
        assert (found is None) == (page[0].page in on_failing)
        assert found is None or read(found) == page[1]
    assert store.probe() == 0
    _run("mount", "-o", "remount,rw", failing)
    assert store.probe() == 1
    assert all(read(store.get(page[0].page)) == page[1] for page in pages)
    assert store.stats().pages == 237
    assert not list(failing.rglob("tmp.*"))


def test_a_disk_that_is_unmounted_does_not_fill_the_one_below(mount: Mount, open_store: Open) -> None:
    place = mount("tmpfs", 16)
    root = place / "cache"
    store = open_store(root)
    pages = pages_of("/m/a", 8)
    assert all(put(store, page) for page in pages)
    held = store.get(pages[0][0].page)
    _run("umount", "-l", place)
    try:
        assert read(held) == pages[0][1]
        assert not any(put(store, page) for page in pages_of("/m/b", 8))
        assert os.listdir(place) == [], "nothing of ours on the disk below"
        assert store.stats().pages == 0
    finally:
        _run("mount", "-t", "tmpfs", "tmpfs", place)


def test_pages_spread_over_disks_by_their_size(mount: Mount, open_store: Open) -> None:
    small, large = mount("tmpfs", 16), mount("tmpfs", 48)
    store = open_store(small, large, capacity_bytes=24 << 20)
    pages = [make_page("/m/a", index, length=100) for index in range(800)]
    assert all(put(store, page) for page in pages)
    on_small = len(list(small.glob("pages/*/*")))
    assert 150 < on_small < 250, "a quarter"
    store.close()
    store = open_store(large, small, capacity_bytes=24 << 20)
    assert all(store.contains(page[0].page) for page in pages), "the order of the list does not matter"
    assert all(put(store, page) for page in pages)
    assert store.stats().pages == 800


def _take_all_descriptors(taken: list[int]) -> None:
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))


def test_descriptors_run_out(tmp_path: Path, open_store: Open) -> None:
    store = open_store(tmp_path / "cache", open_pages=16)
    pages = pages_of("/m/a", 30)
    assert all(put(store, page) for page in pages)
    for page in pages[:16]:
        assert store.get(page[0].page) is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        _take_all_descriptors(taken)
        assert read(store.get(pages[20][0].page)) == pages[20][1], "half of the open pages made room"
        held = [store.get(page[0].page) for page in pages]
        assert all(read(found) == page[1] for found, page in zip(held, pages, strict=True) if found)
        assert None in held, "somebody else holds them all now"
        assert not put(store, make_page("/m/more"))
        assert store.stats().pages == 30, "nothing is dropped for want of descriptors"
        assert store.stats().evictions == {}
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    del held
    assert all(read(store.get(page[0].page)) == page[1] for page in pages)
    assert put(store, make_page("/m/more"))


def test_a_kernel_that_writes_less_than_it_was_given(
    tmp_path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "cache")
    real, sizes = os.writev, iter([1, 4000, 95, 1, 5000] * 100)

    def short(fd: int, buffers: list[memoryview]) -> int:
        return real(fd, [b"".join(buffers)[: next(sizes)]])

    page = make_page("/m/a", length=30_000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", short)
        assert put(store, page)
    assert store.verify(page[0].page)
    assert file_of(tmp_path / "cache", page[0].page).stat().st_size == 4096 + 30_000


def test_a_limit_on_file_sizes(tmp_path: Path, open_store: Open) -> None:
    """EFBIG after a part was written; Python ignores SIGXFSZ."""
    store = open_store(tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert not any(put(store, page) for page in pages_of("/m/a", 5))
        assert put(store, make_page("/m/small", length=10_000)), "the disk is not to blame"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.stats().pages == 1
    assert not list(tmp_path.rglob("tmp.*"))
