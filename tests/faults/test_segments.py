"""Segments: what readers see of removed ones, what is copied, what damage costs, where pages come from."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_data import FOOTPRINT, NOW_NS, PAGE_BYTES, Page, make_page, read

from kara_cache.errors import ConfigError
from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.segments import room, segment
from kara_worker.segments.page_store import SegmentPageStore, can_hold_segments
from kara_worker.segments.quarantine import Quarantine

SEGMENT = 4 * FOOTPRINT
Open = Callable[..., SegmentPageStore]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def open_store(root: Path) -> Iterator[Open]:
    opened: list[SegmentPageStore] = []

    def open_it(*roots: Path, capacity_bytes: int = 64 * FOOTPRINT, **options: Any) -> SegmentPageStore:
        options = {"min_free_bytes": 0, "segment_bytes": SEGMENT, "policy": LeastRecentlyUsed(), **options}
        opened.append(SegmentPageStore(roots or [root], capacity_bytes, PAGE_BYTES, **options))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def put(store: SegmentPageStore | FilePageStore, page: Page) -> bool:
    return store.put(page[0], page[1], group="m")


def get(store: SegmentPageStore, page: Page) -> Any:
    return store.get(page[0].page)


def flood(store: SegmentPageStore, count: int, name: str = "flood") -> None:
    for index in range(count):
        put(store, make_page(f"/m/{name}", index))


def segments(root: Path) -> list[Path]:
    return sorted((root / "segments").glob("*.seg"))


def disk_bytes(root: Path) -> int:
    total = 0
    for path in segments(root):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


# -- what readers see ---------------------------------------------------------------------------------


def recycle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the protection out: a removed segment's file becomes the next segment, whoever has seen it."""
    monkeypatch.setattr(room, "_unseen", lambda segment: True)
    monkeypatch.setattr(room, "_FULL_PART", 1)


@pytest.mark.parametrize("protected", [True, False])
def test_what_was_sent_stays_as_it_was(
    open_store: Open, protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sendfile sends memory of the file: what is written to that place later is what arrives. A response is
    on its way while the whole cache is replaced; without the protection the peer gets other bytes."""
    if not protected:
        recycle(monkeypatch)
    store = open_store(capacity_bytes=16 * FOOTPRINT)
    page = make_page("/m/sent")
    put(store, page)
    flood(store, 3, "beside")
    stored = get(store, page)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        receiver, _ = server.accept()
        with sender, receiver:
            sent = os.sendfile(sender.fileno(), stored.fd, stored.offset, PAGE_BYTES)
            assert sent > 8192
            del stored
            flood(store, 40)
            assert not store.contains(page[0].page)
            got = receiver.recv(sent, socket.MSG_WAITALL)
    assert (got == page[1][:sent]) is protected


@pytest.mark.parametrize("protected", [True, False])
def test_a_reader_on_this_host_keeps_what_it_was_given(
    open_store: Open, protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not protected:
        recycle(monkeypatch)
    store = open_store(capacity_bytes=16 * FOOTPRINT)
    page = make_page("/m/passed")
    put(store, page)
    flood(store, 3, "beside")
    stored = get(store, page)
    record, data = stored.hand_over()
    fd = os.dup(stored.fd)
    del stored
    flood(store, 40)
    store._files.maintain()
    assert (os.pread(fd, PAGE_BYTES, data) == page[1]) is protected
    assert data == record + 4096
    os.close(fd)


def test_a_reader_that_never_closes_does_not_keep_the_room(open_store: Open, root: Path) -> None:
    """After the quarantine the segment is cut: a late reader gets nothing, never something else."""
    now = [1000.0]
    store = open_store(capacity_bytes=16 * FOOTPRINT)
    quarantine = Quarantine(60.0, lambda: now[0])
    store._files._room.quarantine = quarantine  # type: ignore[attr-defined]
    page, other = make_page("/m/passed"), make_page("/m/other")
    put(store, page)
    put(store, other)
    flood(store, 2, "beside")
    stored, response = get(store, page), get(store, other)
    stored.hand_over()
    stored._file.segment.passed_at = now[0]
    fd, at = os.dup(stored.fd), stored.offset
    del stored
    flood(store, 40)
    assert len(quarantine) == 1
    assert quarantine.bytes == SEGMENT
    now[0] += 59
    store._files.maintain()
    assert os.pread(fd, PAGE_BYTES, at) == page[1]
    now[0] += 2
    store._files.maintain()
    assert read(response) == other[1], "a response of ours is never cut off"
    assert os.pread(fd, PAGE_BYTES, at) == page[1]
    del response
    store._files.maintain()
    assert os.pread(fd, PAGE_BYTES, at) == b""
    assert os.fstat(fd).st_blocks == 0
    assert len(quarantine) == 0
    os.close(fd)


@pytest.mark.parametrize("seen", [False, True])
def test_the_file_of_a_segment_that_nobody_saw_becomes_the_next_one(
    open_store: Open, root: Path, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never one of which a page was opened."""
    monkeypatch.setattr(room, "_FULL_PART", 1)
    store = open_store()
    pages = [make_page("/m/a", index, length=60_000 - 1000 * index) for index in range(12)]
    assert all(put(store, page) for page in pages[:8])
    path, _ = place_in_file(store, pages[0])
    assert place_in_file(store, pages[3])[0] == path != place_in_file(store, pages[4])[0]
    if seen:
        assert get(store, pages[0]) is not None
    fd = os.open(path, os.O_RDONLY)
    assert all(store.drop(page[0].page, "free") for page in pages[:4])
    assert all(put(store, page) for page in pages[8:])
    assert not path.exists()
    assert os.fstat(fd).st_nlink == (0 if seen else 1)
    if not seen:
        assert os.path.samestat(os.fstat(fd), place_in_file(store, pages[9])[0].stat())
    os.close(fd)
    for _ in range(2):
        assert all(read(get(store, page)) == page[1] for page in pages[4:])
        assert (store.stats().pages, store.stats().corrupt) == (8, {})
        store.close()
        assert disk_bytes(root) <= 8 * FOOTPRINT, "spare files are not left behind"
        store = open_store()


def test_segments_that_nobody_was_given_are_gone_at_once(open_store: Open, root: Path) -> None:
    store = open_store(capacity_bytes=16 * FOOTPRINT)
    flood(store, 100)
    held = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)}
    assert not [name for name in held if str(root) in name and name.endswith(".seg (deleted)")]


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


# -- room ---------------------------------------------------------------------------------------------


def test_small_pages_are_packed_exactly(open_store: Open, root: Path) -> None:
    store = open_store(capacity_bytes=64 << 20, segment_bytes=4 << 20)
    pages = [make_page(f"/m/{n}", length=20 << 10) for n in range(600)]
    assert all(put(store, page) for page in pages)
    assert store.stats().bytes <= 1.02 * 600 * (20 << 10)
    store.close()
    assert disk_bytes(root) <= 1.02 * 600 * (20 << 10)


def test_pages_that_are_used_survive_in_the_order_of_the_policy(open_store: Open, root: Path) -> None:
    """Every fourth page is read again and again: its segments empty around it, and it is copied, not lost."""
    store = open_store(capacity_bytes=64 * FOOTPRINT)
    kept = [make_page("/m/kept", index) for index in range(8)]
    for round_ in range(30):
        for page in kept:
            if round_ == 0:
                assert put(store, page)
            assert get(store, page) is not None, round_
            flood(store, 3, f"flood-{round_}-{page[0].page.index}")
        assert disk_bytes(root) <= 65 * FOOTPRINT + SEGMENT
    assert all(read(get(store, page)) == page[1] for page in kept)
    stats, reclaim = store.stats(), store._files._reclaim  # type: ignore[attr-defined]
    assert stats.pages > 40
    assert 0 < reclaim.copied <= 8 + 30 * 8 * 3, "no more is copied than comes in"
    assert (stats.corrupt, stats.disk_errors, stats.rejections) == ({}, 0, {})


def test_pinned_pages_stay_however_full_it_is(open_store: Open, root: Path) -> None:
    store = open_store(capacity_bytes=64 * FOOTPRINT)
    pinned = [make_page("/m/pinned", index) for index in range(40)]
    store.shelter(pinned[0][0].page.file_id)
    for page in pinned:  # each between others, which leave
        assert put(store, page)
        flood(store, 2, f"beside-{page[0].page.index}")
    flood(store, 100)
    assert all(read(get(store, page)) == page[1] for page in pinned)
    assert store.stats().rejections == {}
    assert disk_bytes(root) <= 65 * FOOTPRINT + SEGMENT
    store.close()
    store = open_store(
        capacity_bytes=128 * FOOTPRINT
    )  # evicts nothing by itself: what is pinned is not known yet
    assert all(read(get(store, page)) == page[1] for page in pinned)


def test_a_policy_that_refuses_is_not_asked_for_victims(open_store: Open) -> None:
    class Closed(LeastRecentlyUsed):
        def admit(self, page: Any, size: int, group: str) -> bool:
            return False

        def expendable(self) -> bool:
            return False

    store = open_store(capacity_bytes=32 * FOOTPRINT, policy=Closed())
    flood(store, 60)
    assert store.stats().pages == 31  # a 32nd part is spare
    for index in range(0, 32, 4):
        store.drop(make_page("/m/flood", index)[0].page, "free")
    flood(store, 60, "more")
    stats = store.stats()
    assert stats.evictions == {"free": 8}
    assert (stats.pages, set(stats.rejections)) == (31, {"policy"}), "its room was in pieces"


def test_pages_come_and_go_while_segments_are_reclaimed(open_store: Open) -> None:
    """What the contract suite does with many threads, with four pages to a segment."""
    import random
    import threading

    store = open_store(capacity_bytes=48 * FOOTPRINT)
    pages = [make_page(f"/m/{n % 6}", n, length=1 + (n * 7919) % PAGE_BYTES) for n in range(160)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(200):
            page = pages[min(source.randrange(160), source.randrange(160))]
            if source.random() < 0.5:
                put(store, page)
            elif source.random() < 0.9:
                stored = get(store, page)
                if stored is not None and read(stored) != page[1]:
                    wrong.append(str(page[0].page))
            else:
                store.drop(page[0].page, "free")
            if (stats := store.stats()).bytes > stats.capacity_bytes:
                wrong.append(f"{stats.bytes} bytes")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    stats = store.stats()
    assert (wrong, stats.corrupt, stats.disk_errors) == ([], {}, 0)
    store.close()  # and with it the thread that evicts ahead of need
    here = {page[0].page for page in pages if store._space.find(page[0].page) is not None}
    again = open_store(capacity_bytes=96 * FOOTPRINT)  # evicts nothing by itself
    assert {page[0].page for page in pages if again.contains(page[0].page)} == here
    assert all(again.verify(page) for page in here)


def test_a_page_that_comes_back_to_the_place_it_is_leaving(open_store: Open) -> None:
    """Its segment is removed and another gets the slot, before the thread that evicts it says so."""
    store = open_store()
    page = make_page("/m/a")
    put(store, page)
    entry = store._space.take(page[0].page, "capacity")
    assert entry is not None
    store._files._room.seal_all(store._files._places[0])  # type: ignore[attr-defined]
    put(store, page)
    assert store._space.find(page[0].page) == entry, "the same slot, the same place"
    store._files.unlink([(page[0].page, entry)])
    store.close()
    assert get(open_store(), page) is not None


def test_a_long_journal_becomes_an_index(
    open_store: Open, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a segment has no page yet."""
    monkeypatch.setattr("kara_worker.segments.directory._LEAST_JOURNAL", 8)
    store = open_store()
    flood(store, 21)
    store.drop(make_page("/m/flood", 20)[0].page, "free")
    store._files._places[0].new_head("kept", SEGMENT)  # type: ignore[attr-defined]
    store._files.maintain()
    store._files.maintain()
    names = sorted(path.name for path in (root / "segments").iterdir() if path.suffix != ".seg")
    assert [name.partition(".")[0] for name in names] == ["index", "journal"]
    assert (root / "segments" / names[1]).stat().st_size == 0
    flood(store, 2, "more")
    store.close()
    store = open_store()
    assert store.stats().pages == 22
    assert {file.path: file.pages for file in store.files()} == {"/m/flood": 20, "/m/more": 2}


# -- damage -------------------------------------------------------------------------------------------


def place_in_file(store: SegmentPageStore, page: Page) -> tuple[Path, int]:
    entry = store._space.find(page[0].page)
    assert entry is not None
    found = store._files._index.segment(entry)  # type: ignore[attr-defined]
    return Path(found.path), segment.offset_in(entry)


def flip(path: Path, offset: int, mask: int = 1) -> None:
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 100 + 4 * 8 + 40_000), bit=st.integers(0, 7))
def test_any_flipped_bit_costs_that_page_alone(open_store: Open, offset: int, bit: int) -> None:
    store = open_store()
    page, other = make_page("/m/a", length=40_000), make_page("/m/b", length=40_000)
    put(store, page)
    put(store, other)
    path, at = place_in_file(store, page)
    header = 72 + 3 * 8 + len("/m/a") + 8
    padding = -header % 64
    offset %= header + 40_000
    flip(path, at + (offset if offset < header else offset + padding), 1 << bit)
    assert not store.verify(page[0].page)
    assert not store.contains(page[0].page)
    assert store.verify(other[0].page)
    assert sum(store.stats().corrupt.values()) == 1
    store.close()
    shutil.rmtree(path.parents[1])


@pytest.mark.parametrize("where", ["header", "data", "truncated", "identity"])
def test_damage_of_the_past_is_found_when_the_page_is_read(open_store: Open, where: str) -> None:
    store = open_store()
    other, page = make_page("/m/other"), make_page("/m/a")
    put(store, other)
    put(store, page)
    path, at = place_in_file(store, page)
    store.close()
    if where == "truncated":
        os.truncate(path, at + 70)
    elif where == "identity":
        raw = path.read_bytes()
        os.chmod(path, 0o600)
        path.write_bytes(raw[:at] + raw[:FOOTPRINT])
    else:
        flip(path, at + (50 if where == "header" else 4096 + 50))
    again = open_store()
    assert not again.verify(page[0].page)
    assert again.stats().corrupt == {where: 1}
    assert [file.path for file in again.files()] == ["/m/other"]
    assert again.verify(other[0].page)


def test_a_damaged_page_is_not_copied(open_store: Open) -> None:
    store = open_store(capacity_bytes=32 * FOOTPRINT)
    pages = [make_page("/m/kept", index) for index in range(4)]
    for page in pages:
        put(store, page)
    flip(place_in_file(store, pages[1])[0], place_in_file(store, pages[1])[1] + 5000)
    store.drop(pages[2][0].page, "free")
    store.drop(pages[3][0].page, "free")
    flood(store, 1)  # seals the segment: the next does not fit
    place = store._files._places[0]  # type: ignore[attr-defined]
    for page in pages[:2]:
        assert store._files.copy(place, page[0].page, store._space.find(page[0].page))  # type: ignore
    assert read(get(store, pages[0])) == pages[0][1]
    assert get(store, pages[1]) is None
    assert store.stats().corrupt == {"data": 1}


def test_a_segment_that_somebody_removed(open_store: Open, root: Path) -> None:
    store = open_store()
    flood(store, 9)
    segments(root)[0].unlink()
    found = [store.get(make_page("/m/flood", index)[0].page) for index in range(9)]
    assert [stored is None for stored in found] == [True] * 4 + [False] * 5
    assert store.stats().evictions == {"lost": 4}
    segments(root)[-1].unlink()  # to which pages are added
    put(store, make_page("/m/next"))
    store._space.close_all()
    store._files._reader.close_half()  # type: ignore[attr-defined]
    store._files._reader.close_half()  # type: ignore[attr-defined]
    assert get(store, make_page("/m/next")) is None
    assert put(store, make_page("/m/after"))
    assert read(store.get(make_page("/m/after")[0].page)) == make_page("/m/after")[1]


def test_journals_that_are_gone_or_wrong_cost_pages_and_nothing_else(open_store: Open, root: Path) -> None:
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"x" * 100)):
        store = open_store()
        flood(store, 8)
        store.close()
        damage(root / "segments" / "journal.0")
        store = open_store()
        assert store.stats().pages == 0
        assert segments(root) == []
        assert put(store, make_page("/m/a"))
        store.close()
        shutil.rmtree(root)


# -- directories --------------------------------------------------------------------------------------


def test_one_of_two_disks_fails_and_comes_back(open_store: Open, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    store = open_store(*roots, capacity_bytes=400 * FOOTPRINT)
    pages = [make_page("/m/a", index) for index in range(80)]
    assert all(put(store, page) for page in pages)
    on_one = {page[0].page for page in pages if place_in_file(store, page)[0].parents[1] == roots[0]}
    assert 10 < len(on_one) < 70
    shelf = store._files
    for _ in range(3):
        shelf._faults.failed(shelf.directories[0], OSError(5, "made up"))  # type: ignore[attr-defined]
    assert store.stats().evictions == {"lost": len(on_one)}
    assert all((get(store, page) is None) == (page[0].page in on_one) for page in pages)
    more = [make_page("/m/b", index) for index in range(40)]
    assert all(put(store, page) for page in more)
    assert store.probe() == 1
    assert all(read(get(store, page)) == page[1] for page in pages + more)
    store.close()
    store = open_store(*reversed(roots), capacity_bytes=400 * FOOTPRINT)
    assert all(read(get(store, page)) == page[1] for page in pages + more)


def test_the_directory_is_wiped_while_in_use(open_store: Open, root: Path) -> None:
    store = open_store()
    flood(store, 10)
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    put(store, make_page("/m/after", 1))
    store._files.maintain()  # finds out
    assert put(store, make_page("/m/after", 2))
    assert store.stats().pages == 1
    assert read(store.get(make_page("/m/after", 2)[0].page)) == make_page("/m/after", 2)[1]


def test_segments_that_are_a_link_are_refused(open_store: Open, root: Path, tmp_path: Path) -> None:
    open_store().close()
    (root / "segments" / "journal.0").unlink()
    (root / "segments").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "segments").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="segments is not a directory"):
        open_store()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_thousand_segments_need_few_descriptors(open_store: Open) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        store = open_store(capacity_bytes=2000 * FOOTPRINT, segment_bytes=1, open_pages=20)
        pages = [make_page("/m/a", index) for index in range(300)]
        assert all(put(store, page) for page in pages)
        assert all(read(get(store, page)) == page[1] for page in pages)
        assert len(os.listdir("/proc/self/fd")) < before + 100
        held = [get(store, page) for page in pages]
        assert None in held, "somebody holds them all"
        assert all(read(stored) == page[1] for stored, page in zip(held, pages, strict=True) if stored)
        del held
        assert store.stats().pages == 300, "nothing is dropped for want of descriptors"
        assert all(read(get(store, page)) == page[1] for page in pages)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ages_survive_copies_and_restarts(open_store: Open) -> None:
    store = open_store(capacity_bytes=32 * FOOTPRINT)
    old = [make_page("/m/old", index, created_ns=NOW_NS - 10**12) for index in range(6)]
    for page in old:
        put(store, page)
        put(store, make_page("/m/new", page[0].page.index, created_ns=NOW_NS))
    place = store._files._places[0]  # type: ignore[attr-defined]
    assert store._files.copy(place, old[0][0].page, store._space.find(old[0][0].page))  # type: ignore
    store.close()
    store = open_store(capacity_bytes=32 * FOOTPRINT)
    assert store.expire({"m": 500.0}, NOW_NS) == 6
    assert {file.path for file in store.files()} == {"/m/new"}


# -- from one kind to the other -----------------------------------------------------------------------


def test_pages_in_files_move_to_segments(open_store: Open, root: Path) -> None:
    files = FilePageStore([root], 64 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
    pages = [make_page(f"/m/{n % 7}", n, length=1 + n * 500) for n in range(120)]
    assert all(put(files, page) for page in pages)
    files.close()
    store = open_store(capacity_bytes=64 << 20)
    assert read(get(store, pages[77])) == pages[77][1], "at once"
    assert store.contains(pages[3][0].page)
    assert store.free("/m/5", recursive=False)[0] <= len(pages) // 7 + 1
    for thread in store._threads:
        if thread.name == "page-migration":
            thread.join(timeout=60)
    freed = {page[0].page for page in pages if page[0].path == "/m/5"}
    assert all((get(store, page) is None) == (page[0].page in freed) for page in pages)
    assert all(read(get(store, page)) == page[1] for page in pages if page[0].page not in freed)
    assert not list((root / "pages").iterdir())
    store.close()
    store = open_store(capacity_bytes=64 << 20)
    assert store.stats().pages == len(pages) - len(freed)


def test_a_move_that_is_interrupted_goes_on_at_the_next_start(open_store: Open, root: Path) -> None:
    files = FilePageStore([root], 64 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
    pages = [make_page("/m/a", n) for n in range(60)]
    assert all(put(files, page) for page in pages)
    files.close()
    for _ in range(3):
        open_store(capacity_bytes=64 << 20).close()
    store = open_store(capacity_bytes=64 << 20)
    assert all(read(get(store, page)) == page[1] for page in pages)


def test_segments_are_removed_where_pages_are_in_files(open_store: Open, root: Path) -> None:
    store = open_store()
    flood(store, 8)
    store.close()
    (root / "segments" / "notes.txt").write_text("somebody's")
    files = FilePageStore([root], 64 << 20, PAGE_BYTES, LeastRecentlyUsed(), min_free_bytes=0)
    assert files.stats().pages == 0
    files.close()
    assert os.listdir(root / "segments") == ["notes.txt"], "nothing but ours"


def test_a_file_system_without_fallocate_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_hold_segments(tmp_path / "not" / "there" / "yet")

    def cannot(fd: int, size: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("kara_worker.segments.page_store.allocate", cannot)
    assert not can_hold_segments(tmp_path)
    assert list(tmp_path.iterdir()) == []
