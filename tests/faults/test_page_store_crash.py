"""kill -9 at every system call of a put, and system calls that fail: nothing torn, lost or left behind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_data import FOOTPRINT, read
from page_store_child import Child, open_store, page_number

from kara_worker.file_page_store import FilePageStore

pytestmark = pytest.mark.fault

CAPACITY = 8 * FOOTPRINT
PUT_CALLS = ["statfs", "openat", "mkdir", "writev", "close", "rename", "unlink", "newfstatat"]


@pytest.fixture(scope="module", autouse=True)
def strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(
        ["strace", "-o", "/dev/null", "true"], capture_output=True, timeout=60, check=False
    ).returncode:
        pytest.skip("strace may not trace here")


def disk_bytes(root: Path) -> int:
    """As the store counts: whole blocks of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in root.glob("pages/*/*"))


def assert_sound(store: FilePageStore, root: Path, expected: set[int], possible: set[int]) -> None:
    """`expected` pages are there, others only of `possible`, each one whole; and the books are right."""
    here = set()
    for number in expected | possible:
        header, data = page_number(number)
        stored = store.get(header.page)
        if stored is not None:
            assert read(stored) == data
            assert store.verify(header.page)
            here.add(number)
    stats = store.stats()
    assert expected <= here
    assert (stats.pages, stats.corrupt) == (len(here), {})
    assert stats.bytes == disk_bytes(root) <= stats.capacity_bytes
    assert not list(root.rglob("tmp.*"))


@pytest.mark.parametrize("call", PUT_CALLS)
def test_killed_at_every_system_call_of_a_put(tmp_path: Path, call: str) -> None:
    """The last put needs an eviction, so that creating, renaming and unlinking are all among the calls."""
    kills = 0
    while True:
        root = tmp_path / f"{call}-{kills}"
        with Child(root, CAPACITY) as child:
            assert all(child.ask(f"put {number}") == [True] for number in range(7))
            with child.traced(f"{call}:signal=KILL:when={kills + 1}"):
                answers = [child.ask(f"put {number}") for number in (300, 301)]
            if None not in answers:
                assert answers == [[True], [True]]
                break
            assert child.killed()
        kills += 1
        store = open_store(root, CAPACITY)
        try:
            list(store.files())
            # the put that succeeded before the kill may have made room by evicting the oldest
            assert_sound(store, root, set(range(2, 7)), {0, 1, 300, 301})
            assert store.put(*page_number(500), group="m")
        finally:
            store.close()
    assert kills >= (0 if call == "newfstatat" else 1), f"{call} never happened"


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    with Child(tmp_path / "cache") as running:
        for number in range(4):
            assert running.ask(f"put {number}") == [True]
        yield running


FULL_DISKS = {
    "openat": "openat:error=ENOSPC",
    "mkdir": "mkdir:error=ENOSPC",
    "writev": "writev:error=ENOSPC",
    "quota": "writev:error=EDQUOT",
    "close": "close:error=ENOSPC",
    "rename": "rename:error=ENOSPC",
}
WRITE_ERRORS = {
    "openat EIO": "openat:error=EIO:when=1",
    "openat EROFS": "openat:error=EROFS:when=1",
    "openat EMFILE": "openat:error=EMFILE:when=1",
    "mkdir EIO": "mkdir:error=EIO:when=2",
    "writev EIO": "writev:error=EIO:when=1",
    "writev nothing": "writev:retval=0:when=1",
    "close EIO": "close:error=EIO:when=1",
    "rename EIO": "rename:error=EIO:when=1",
}


@pytest.mark.parametrize("case", WRITE_ERRORS)
def test_a_put_that_fails_leaves_nothing_behind(child: Child, tmp_path: Path, case: str) -> None:
    with child.traced(WRITE_ERRORS[case]):
        assert child.ask("put 100") == [False]
    (stats,) = child.ask("stats")
    assert stats["rejections"] == {"disk_error": 1}
    assert (stats["pages"], stats["bytes"]) == (4, 4 * FOOTPRINT)
    assert stats["disk_errors"] == 1
    assert disk_bytes(tmp_path / "cache") == 4 * FOOTPRINT
    assert not list(tmp_path.rglob("tmp.*"))
    assert child.ask("put 100") == [True], "one failure does not condemn a disk"
    assert all(child.ask(f"get {number}") == [True] for number in (0, 1, 2, 3, 100))


@pytest.mark.parametrize("case", FULL_DISKS)
def test_a_disk_that_is_full_once_takes_the_page_for_an_old_one(
    child: Child, tmp_path: Path, case: str
) -> None:
    with child.traced(FULL_DISKS[case] + ":when=1"):
        assert child.ask("put 100") == [True]
    (stats,) = child.ask("stats")
    assert (stats["rejections"], stats["disk_errors"]) == ({}, 0)
    assert (stats["pages"], stats["bytes"]) == (4, 4 * FOOTPRINT)
    assert disk_bytes(tmp_path / "cache") == 4 * FOOTPRINT
    assert not list(tmp_path.rglob("tmp.*"))
    assert child.ask("get 100") == [True]


@pytest.mark.parametrize("case", FULL_DISKS)
def test_a_disk_that_stays_full_costs_one_old_page(child: Child, tmp_path: Path, case: str) -> None:
    with child.traced(FULL_DISKS[case] + ":when=1+"):
        assert child.ask("put 100") == [False]
    (stats,) = child.ask("stats")
    assert (stats["rejections"], stats["disk_errors"]) == ({"full": 1}, 0)
    assert (stats["pages"], stats["bytes"]) == (3, 3 * FOOTPRINT)
    assert disk_bytes(tmp_path / "cache") == 3 * FOOTPRINT
    assert not list(tmp_path.rglob("tmp.*"))
    assert child.ask("put 100") == [True]


def test_a_disk_that_swallows_bytes_is_found_out(child: Child) -> None:
    """A short write that lies: 17 of the bytes never reach the file."""
    with child.traced("writev:retval=17:when=1"):
        child.ask("put 100")
    assert child.ask("get 100") == [None]
    (stats,) = child.ask("stats")
    assert sum(stats["corrupt"].values()) == 1
    assert child.ask("put 100") == [True]
    assert child.ask("verify 100") == [True]


READ_ERRORS = {
    "openat EIO": ("openat:error=EIO:when=1", 3),
    "openat EACCES": ("openat:error=EACCES:when=1", 3),
    "openat EMFILE": ("openat:error=EMFILE:when=1", 4),
    "openat ENOENT": ("openat:error=ENOENT:when=1", 3),
    "pread64 EIO": ("pread64:error=EIO:when=1", 3),
    "pread64 nothing": ("pread64:retval=0:when=1", 3),
    "newfstatat EIO": ("newfstatat:error=EIO:when=1", 3),
}


@pytest.mark.parametrize("case", READ_ERRORS)
def test_a_page_that_cannot_be_read_is_not_there(child: Child, case: str) -> None:
    inject, pages_left = READ_ERRORS[case]
    with child.traced(inject):
        assert child.ask("get 1") == [None]
    (stats,) = child.ask("stats")
    assert stats["pages"] == pages_left
    assert stats["disk_errors"] == ("ENOENT" not in case and "nothing" not in case)
    assert stats["bytes"] == pages_left * FOOTPRINT
    assert child.ask("put 1") == [True]
    assert child.ask("get 1") == [True]


def test_data_that_cannot_be_read_fails_verification(child: Child) -> None:
    with child.traced("preadv,preadv2:error=EIO:when=1"):
        assert child.ask("verify 2") == [False]
    (stats,) = child.ask("stats")
    assert (stats["pages"], stats["disk_errors"], stats["evictions"]) == (3, 1, {"lost": 1})


def test_a_disk_that_fails_again_and_again_is_given_up_until_it_works(child: Child) -> None:
    with child.traced("openat,pread64,writev,rename,unlink:error=EIO"):
        answers = [child.ask(f"get {number}") for number in range(4)]
        answers += [child.ask(f"put {number}") for number in (100, 101)]
        assert child.ask("probe") == [0]
    assert answers == [[None]] * 4 + [[False]] * 2
    (stats,) = child.ask("stats")
    assert (stats["pages"], stats["bytes"]) == (0, 0)
    assert stats["evictions"] == {"lost": 4}
    assert child.ask("put 100") == [False], "nobody has looked at it again yet"
    assert child.ask("probe") == [1]
    assert all(child.ask(f"get {number}") == [True] for number in range(4)), "the pages are back"
    assert child.ask("put 100") == [True]


def test_killed_while_it_lists(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with Child(root) as child:
        for number in range(30):
            child.ask(f"put {number}")
        child.kill()
    for _ in range(2):
        with Child(root) as child:
            child.kill()
    store = open_store(root, 1 << 30)
    try:
        list(store.files())
        assert_sound(store, root, set(range(30)), set())
    finally:
        store.close()
