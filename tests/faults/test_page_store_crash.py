"""kill -9 at every system call of a put, and system calls that fail: nothing torn, lost or left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import services
from page_data import FOOTPRINT, read
from page_store_child import Child, Store, open_store, page_number

pytestmark = pytest.mark.fault

CAPACITY = 8 * FOOTPRINT
PUT_CALLS = [
    *(("files", call) for call in ("statfs", "openat", "mkdir", "writev", "close", "rename", "unlink")),
    *(("segments", call) for call in ("fallocate", "pwritev,pwritev2", "pwrite64", "fchmod")),
    *(("segments", call) for call in ("chmod", "rename")),  # of a removed file that becomes the next
]
KINDS = ("files", "segments")


@pytest.fixture(scope="module", autouse=True)
def strace() -> None:
    services.require_strace()


def disk_bytes(root: Path) -> int:
    """As the store counts: whole blocks of 4 KiB."""
    files = [*root.glob("pages/*/*"), *root.glob("segments/*.seg")]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


def assert_sound(store: Store, root: Path, expected: set[int], possible: set[int]) -> None:
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


@pytest.mark.parametrize(("kind", "call"), PUT_CALLS)
def test_killed_at_every_system_call_of_a_put(tmp_path: Path, kind: str, call: str) -> None:
    """The last put needs an eviction, so that creating, renaming and unlinking are all among the calls."""
    kills = 0
    while True:
        root = tmp_path / f"{call}-{kills}"
        with Child(root, CAPACITY, kind) as child:
            assert all(child.ask(f"put {number}") == [True] for number in range(7))
            with child.traced(f"{call}:signal=KILL:when={kills + 1}"):
                answers = [child.ask(f"put {number}") for number in (300, 301)]
            if None not in answers:
                assert answers == [[True], [True]]
                break
            assert child.killed()
        kills += 1
        store = open_store(root, 2 * CAPACITY, kind)  # so that it evicts nothing while we look
        try:
            list(store.files())
            # the put that succeeded before the kill may have made room by evicting the oldest
            assert_sound(store, root, set(range(2, 7)), {0, 1, 300, 301})
            assert store.put(*page_number(500), group="m")
        finally:
            store.close()
    assert kills, f"{call} never happened"


@pytest.fixture
def child(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Child]:
    """Of the kind of store that the test's first parameter names."""
    kind = request.node.callspec.params["kind"]
    with Child(tmp_path / "cache", kind=kind) as running:
        for number in range(4):
            assert running.ask(f"put {number}") == [True]
        yield running


FULL_DISKS = {
    "files": {
        "openat": "openat:error=ENOSPC",
        "mkdir": "mkdir:error=ENOSPC",
        "writev": "writev:error=ENOSPC",
        "quota": "writev:error=EDQUOT",
        "close": "close:error=ENOSPC",
        "rename": "rename:error=ENOSPC",
    },
    "segments": {
        "openat": "openat:error=ENOSPC",
        "fallocate": "fallocate:error=ENOSPC",
        "quota": "fallocate:error=EDQUOT",
        "pwritev": "pwritev,pwritev2:error=ENOSPC",
        "journal": "pwrite64:error=ENOSPC",
    },
}
WRITE_ERRORS = {
    "files": {
        "openat EIO": "openat:error=EIO:when=1",
        "openat EROFS": "openat:error=EROFS:when=1",
        "openat EMFILE": "openat:error=EMFILE:when=1",
        "mkdir EIO": "mkdir:error=EIO:when=2",
        "writev EIO": "writev:error=EIO:when=1",
        "writev nothing": "writev:retval=0:when=1",
        "close EIO": "close:error=EIO:when=1",
        "rename EIO": "rename:error=EIO:when=1",
    },
    "segments": {
        "openat EIO": "openat:error=EIO:when=1",
        "openat EROFS": "openat:error=EROFS:when=1",
        "openat EMFILE": "openat:error=EMFILE:when=1",
        "fallocate EIO": "fallocate:error=EIO:when=1",
        "pwritev EIO": "pwritev,pwritev2:error=EIO:when=1",
        "pwritev nothing": "pwritev,pwritev2:retval=0:when=1",
        "journal EIO": "pwrite64:error=EIO:when=1",
        "fchmod EIO": "fchmod:error=EIO:when=1",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_put_that_fails_leaves_nothing_behind(child: Child, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "cache"
    for number, case in enumerate(WRITE_ERRORS[kind]):
        page, pages = 100 + number, 4 + number
        with child.traced(WRITE_ERRORS[kind][case]):
            assert child.ask(f"put {page}") == [False], case
        (stats,) = child.ask("stats")
        assert stats["rejections"] == {"disk_error": number + 1}
        assert (stats["pages"], stats["bytes"]) == (pages, pages * FOOTPRINT), case
        assert stats["disk_errors"] == number + 1
        # the region of a segment that was not used goes with the segment
        assert 0 <= disk_bytes(root) - pages * FOOTPRINT <= (0 if kind == "files" else FOOTPRINT), case
        assert not list(tmp_path.rglob("tmp.*"))
        assert child.ask(f"put {page}") == [True], "one failure does not condemn a disk"
        assert all(child.ask(f"get {number}") == [True] for number in (0, 1, 2, 3, page))
        assert disk_bytes(root) == (pages + 1) * FOOTPRINT
    child.kill()
    store = open_store(root, 1 << 30, kind)
    list(store.files())
    assert_sound(store, root, {0, 1, 2, 3, *range(100, 100 + len(WRITE_ERRORS[kind]))}, set())
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_takes_the_page_for_an_old_one(child: Child, tmp_path: Path, kind: str) -> None:
    """Full once: an old page goes, the new one comes. Full for good: that costs one old page."""
    root = tmp_path / "cache"
    for number, (case, inject) in enumerate(FULL_DISKS[kind].items()):
        with child.traced(inject + ":when=1"):
            assert child.ask(f"put {100 + number}") == [True], case
        (stats,) = child.ask("stats")
        assert stats["disk_errors"] == 0
        assert (stats["pages"], stats["bytes"]) == (4, 4 * FOOTPRINT), case
        assert disk_bytes(root) == 4 * FOOTPRINT
        assert child.ask(f"get {100 + number}") == [True]
        with child.traced(inject + ":when=1+"):
            assert child.ask(f"put {200 + number}") == [False], case
        (stats,) = child.ask("stats")
        assert (stats["rejections"], stats["disk_errors"]) == ({"full": number + 1}, 0)
        assert (stats["pages"], stats["bytes"]) == (3, 3 * FOOTPRINT), case
        assert 0 <= disk_bytes(root) - 3 * FOOTPRINT <= (0 if kind == "files" else FOOTPRINT)
        assert not list(tmp_path.rglob("tmp.*"))
        assert child.ask(f"put {200 + number}") == [True]


SWALLOWED = {"files": "writev:retval=17:when=1", "segments": "pwritev,pwritev2:retval=17:when=1"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_swallows_bytes_is_found_out(child: Child, kind: str) -> None:
    """A short write that lies: 17 of the bytes never reach the file."""
    with child.traced(SWALLOWED[kind]):
        child.ask("put 100")
    assert child.ask("get 100") == [None]
    (stats,) = child.ask("stats")
    assert sum(stats["corrupt"].values()) == 1
    assert child.ask("put 100") == [True]
    assert child.ask("verify 100") == [True]


READ_ERRORS = {  # -> whether the page stays, whether it counts as a fault of the disk
    "openat EIO": ("openat:error=EIO:when=1", False, True),
    "openat EACCES": ("openat:error=EACCES:when=1", False, True),
    "openat EMFILE": ("openat:error=EMFILE:when=1", True, True),
    "openat ENOENT": ("openat:error=ENOENT", False, False),
    "pread64 EIO": ("pread64:error=EIO:when=1", False, True),
    "pread64 nothing": ("pread64:retval=0:when=1", False, False),
    "newfstatat EIO": ("newfstatat:error=EIO:when=1", False, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_that_cannot_be_read_is_not_there(child: Child, kind: str) -> None:
    errors = 0
    for number, (case, (inject, stays, counted)) in enumerate(READ_ERRORS.items(), 50):
        if kind == "segments" and "fstat" in case:
            continue
        assert child.ask(f"put {number}") == [True]
        with child.traced(inject):
            assert child.ask(f"get {number}") == [None], case
        errors += counted
        (stats,) = child.ask("stats")
        assert (stats["pages"], stats["disk_errors"]) == (5 if stays else 4, errors), case
        assert stats["bytes"] == stats["pages"] * FOOTPRINT
        assert child.ask(f"put {number}") == [True]
        assert child.ask(f"get {number}") == [True]
        assert child.ask(f"drop {number}") == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_cannot_be_read_fails_verification(child: Child, kind: str) -> None:
    with child.traced("preadv,preadv2:error=EIO:when=1"):
        assert child.ask("verify 2") == [False]
    (stats,) = child.ask("stats")
    assert (stats["pages"], stats["disk_errors"], stats["evictions"]) == (3, 1, {"lost": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_again_and_again_is_given_up_until_it_works(child: Child, kind: str) -> None:
    with child.traced("openat,pread64,writev,pwritev,pwritev2,pwrite64,rename,unlink:error=EIO"):
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


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_it_lists(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "cache"
    with Child(root, kind=kind) as child:
        for number in range(30):
            child.ask(f"put {number}")
        child.kill()
    for _ in range(2):
        with Child(root, kind=kind) as child:
            child.kill()
    store = open_store(root, 1 << 30, kind)
    try:
        list(store.files())
        assert_sound(store, root, set(range(30)), set())
    finally:
        store.close()


@pytest.mark.parametrize("call", ["pwritev,pwritev2", "pwrite64", "unlink", "fallocate"])
def test_killed_while_segments_are_reclaimed(tmp_path: Path, call: str) -> None:
    """Pages that are used lie between pages that go, so that segments are copied and removed; the process is
    killed at a few of the calls in the middle of that."""
    used = range(0, 32, 4)
    for when in (2, 5, 9):
        root = tmp_path / f"{call}-{when}"
        with Child(root, 32 * FOOTPRINT, "segments", 4 * FOOTPRINT) as child:
            assert all(child.ask(f"put {number}") == [True] for number in range(30))
            with child.traced(f"{call}:signal=KILL:when={when}"):
                for number in range(100, 150):
                    asked = [f"get {used[number % len(used)]}", f"put {number}"]
                    if None in [child.ask(command) for command in asked]:
                        break
            assert child.killed(), f"{call} happened less than {when} times"
        store = open_store(root, 64 * FOOTPRINT, "segments", 4 * FOOTPRINT)  # evicts nothing by itself
        try:
            pages = [page_number(number) for number in (*range(30), *range(100, 150))]
            here = [page for page in pages if store.contains(page[0].page)]
            assert len(here) > 15
            assert all(read(store.get(page[0].page)) == page[1] for page in here)
            stats = store.stats()
            assert (stats.pages, stats.bytes, stats.corrupt) == (len(here), len(here) * FOOTPRINT, {})
            assert disk_bytes(root) <= 33 * FOOTPRINT + 4 * FOOTPRINT
            assert store.put(*page_number(500), group="m")
        finally:
            store.close()
