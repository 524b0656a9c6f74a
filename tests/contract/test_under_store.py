"""The laws of `kara_cache/ufs/base.py`, over every kind of store in `stores.py`."""

from __future__ import annotations

import errno
import gc
import io
import multiprocessing
import random
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from stores import SECRET, Site

from kara_cache.errors import StaleVersion
from kara_cache.ufs import FileInfo, UnderStore
from kara_cache.ufs.path import listing_key

HOSTILE_PATHS = [
    "..",
    "../secret",
    "a/../../secret",
    "a/..",
    ".",
    "a/./b",
    "/etc/passwd",
    "a//b",
    "a/",
    "a\0b",
]
AWKWARD_NAMES = [
    "plain.bin",
    "with space",
    " leading and trailing ",
    "per%cent",
    "per%2Fcent",
    "plus+plus",
    "hash#hash",
    "question?mark",
    "amp&ersand=1;semi",
    "quote'and\"quote",
    "<angle>&amp;",
    "back\\slash",
    "colon:name",
    "tilde~",
    "...",
    "..hidden",
    "中文/数据集.parquet",
    "é nfc",
    "e\u0301 nfd",
    "😀/😀",
    "deep/er/and/deep/er",
]
GONE = (FileNotFoundError, NotADirectoryError)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read(store: UnderStore, path: str, start: int, length: int, **more: Any) -> bytes:
    buffer = bytearray(b"\xaa" * length)
    count = store.read_into(path, start, memoryview(buffer), **more)
    assert buffer[count:] == b"\xaa" * (length - count), "wrote behind what it returned"
    return bytes(buffer[:count])


def pinned_version(site: Site, path: str) -> str:
    return site.store.info(path).version or pytest.skip(f"{site.kind} has nothing to pin by")


def sorted_by_law(entries: list[FileInfo]) -> bool:
    keys = [listing_key(entry.path, entry.is_dir) for entry in entries]
    return keys == sorted(keys)


def in_a_fork(call: Callable[[], Any]) -> None:
    """Runs `call` in a forked child; an exception there fails the test here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: forking with threads is the point
        child = multiprocessing.get_context("fork").Process(target=call)
        child.start()
    child.join(timeout=30)
    if child.exitcode is None:
        child.kill()
        child.join()
        pytest.fail("the forked child hangs")
    assert child.exitcode == 0


# -- what is there


def test_url_shows_no_secret(site: Site) -> None:
    assert "://" in site.store.url
    assert "@" not in site.store.url
    for text in (site.store.url, repr(site.store)):
        assert SECRET not in text


def test_info_of_a_file(site: Site) -> None:
    site.put("a/b.bin", content(1000))
    info = site.store.info("a/b.bin")
    assert (info.path, info.size, info.is_dir) == ("a/b.bin", 1000, False)
    assert info == site.store.info("a/b.bin"), "an unchanged file keeps its version"


def test_info_of_a_directory(site: Site) -> None:
    site.put("a/b/c.bin", b"x")
    for path in ("", "a", "a/b"):
        info = site.store.info(path)
        assert (info.path, info.size, info.is_dir) == (path, 0, True)


@pytest.mark.parametrize("path", ["missing", "a/missing", "missing/below", "a/b.bin/below", "a/b"])
def test_nothing_there(site: Site, path: str) -> None:
    site.put("a/b.bin", b"x")
    with pytest.raises(GONE):
        site.store.info(path)
    with pytest.raises(GONE):
        list(site.store.list(path))
    with pytest.raises(GONE):
        read(site.store, path, 0, 10)


def test_deleted_file_is_gone(site: Site) -> None:
    site.put("a", b"x")
    site.store.info("a")
    site.delete("a")
    with pytest.raises(FileNotFoundError):
        site.store.info("a")
    with pytest.raises(FileNotFoundError):
        read(site.store, "a", 0, 1)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_hostile_path_is_refused_before_anything_is_sent(site: Site, path: str) -> None:
    before = site.requests_seen()
    store = site.store
    calls: list[Callable[[], Any]] = [
        lambda: store.info(path),
        lambda: list(store.list(path)),
        lambda: read(store, path, 0, 10),
    ]
    if site.capabilities.writes:
        calls += [
            lambda: store.write(path, b"x"),
            lambda: store.open_writer(path),
            lambda: store.delete(path),
            lambda: store.make_directory(path),
        ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert site.requests_seen() == before


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_awkward_name(site: Site, name: str) -> None:
    site.put(f"d/{name}", name.encode())
    info = site.store.info(f"d/{name}")
    assert info.path == f"d/{name}"
    assert read(site.store, f"d/{name}", 0, 100, version=info.version) == name.encode()
    if site.capabilities.dot_names or not name.startswith("."):
        assert list(site.store.list("d", recursive=True)) == [info]


# -- listing


def test_list_direct_children(site: Site) -> None:
    for path in ("d/b", "d/a", "d/sub/x", "d/sub/y", "d-not", "d/sub.file", "d/sub-file"):
        site.put(path, path.encode())
    entries = list(site.store.list("d"))
    assert [(entry.path, entry.is_dir) for entry in entries] == [
        ("d/a", False),
        ("d/b", False),
        ("d/sub-file", False),
        ("d/sub.file", False),
        ("d/sub", True),
    ]
    assert [entry for entry in entries if not entry.is_dir] == [
        site.store.info(path) for path in ("d/a", "d/b", "d/sub-file", "d/sub.file")
    ]


def test_list_recursive_is_every_file_and_no_directory(site: Site) -> None:
    paths = ["d/a", "d/sub/deep/x", "d/sub/y", "d/sub-file", "d/z", "d-not/x", "e"]
    for path in paths:
        site.put(path, path.encode())
    entries = list(site.store.list("d", recursive=True))
    assert [entry.path for entry in entries] == ["d/a", "d/sub-file", "d/sub/deep/x", "d/sub/y", "d/z"]
    assert [entry.path for entry in site.store.list("", recursive=True)] == sorted(paths)
    assert not any(entry.is_dir for entry in entries)


def test_list_of_a_file_is_the_file(site: Site) -> None:
    site.put("d/a", b"x")
    for recursive in (False, True):
        assert list(site.store.list("d/a", recursive=recursive)) == [site.store.info("d/a")]


def test_list_more_than_a_thousand_as_the_iterator_advances(site: Site) -> None:
    count = 1050  # a page of S3 and OSS has 1000
    for i in range(count):
        site.put(f"d/{i:04}", b"%d" % i)
    before = site.requests_seen()
    entries = iter(site.store.list("d"))
    first = [next(entries) for _ in range(3)]
    few = site.requests_seen() - before
    rest = list(entries)
    assert [entry.path for entry in first + rest] == [f"d/{i:04}" for i in range(count)]
    if site.requests is not None:
        assert few < site.requests_seen() - before, "the first entry cost as much as all of them"
    assert len(list(site.store.list("d", recursive=True))) == count


def test_list_empty_directory(hierarchical: Site) -> None:
    hierarchical.store.make_directory("d/empty")
    assert list(hierarchical.store.list("d/empty")) == []
    assert [entry.path for entry in hierarchical.store.list("d")] == ["d/empty"]
    assert list(hierarchical.store.list("d", recursive=True)) == []


# -- reading


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, 1000),
        (0, 1),
        (999, 1),
        (500, 100),
        (0, 0),
        (990, 100),
        (0, 5000),
        (1000, 10),
        (5000, 10),
        (1000, 0),
    ],
)
def test_read_is_slicing(site: Site, start: int, length: int) -> None:
    data = content(1000)
    site.put("a", data)
    version = site.store.info("a").version
    assert read(site.store, "a", start, length) == data[start : start + length]
    assert read(site.store, "a", start, length, version=version) == data[start : start + length]


def test_read_of_an_empty_file(site: Site) -> None:
    site.put("empty", b"")
    info = site.store.info("empty")
    assert (info.size, info.is_dir) == (0, False)
    assert read(site.store, "empty", 0, 10, version=info.version) == b""
    assert read(site.store, "empty", 7, 10, version=info.version) == b""


def test_read_of_many_mebibytes(site: Site) -> None:
    data = content(5_000_000)
    site.put("big", data)
    version = site.store.info("big").version
    assert read(site.store, "big", 1_234_567, 3_000_000, version=version) == data[1_234_567:4_234_567]


def test_read_with_negative_start(site: Site) -> None:
    site.put("a", b"x")
    with pytest.raises(ValueError):
        read(site.store, "a", -1, 10)


def test_read_of_a_directory(site: Site) -> None:
    site.put("d/a", b"x")
    with pytest.raises(IsADirectoryError):
        read(site.store, "d", 0, 10)


def test_progress_counts_up_to_the_end(site: Site) -> None:
    data = content(2_000_000)
    site.put("big", data)
    buffer = bytearray(len(data) + 10)
    seen: list[int] = []

    def check(valid: int) -> None:
        assert buffer[:valid] == data[:valid], "reported as valid and is not"
        seen.append(valid)

    assert site.store.read_into("big", 0, memoryview(buffer), progress=check) == len(data)
    assert seen[-1] == len(data)
    assert seen == sorted(set(seen))


def test_no_reference_to_the_buffer_remains(site: Site) -> None:
    class Tracked(bytearray):
        pass

    site.put("a", content(1000))
    buffer = Tracked(1000)
    gone = weakref.ref(buffer)
    view = memoryview(buffer)
    site.store.read_into("a", 0, view, version=site.store.info("a").version)
    view.release()
    buffer.append(0)  # BufferError while anybody still exports it
    del buffer, view
    gc.collect()
    assert gone() is None


# -- versions


def test_overwritten_with_the_same_size_is_another_version(site: Site) -> None:
    site.put("a", content(1000, seed=1))
    version = pinned_version(site, "a")
    site.put("a", content(1000, seed=2))
    with pytest.raises(StaleVersion):
        read(site.store, "a", 0, 1000, version=version)
    with pytest.raises(StaleVersion):
        read(site.store, "a", 300, 10, version=version)
    now = site.store.info("a").version
    assert now != version
    assert read(site.store, "a", 0, 1000, version=now) == content(1000, seed=2)


def test_end_of_a_shorter_version_is_not_the_end(site: Site) -> None:
    site.put("a", content(1000))
    version = pinned_version(site, "a")
    site.put("a", content(10))
    for start in (0, 5, 10, 500):
        with pytest.raises(StaleVersion):
            read(site.store, "a", start, 100, version=version)


def test_deleted_after_info(site: Site) -> None:
    site.put("a", content(1000))
    version = site.store.info("a").version
    site.delete("a")
    with pytest.raises(FileNotFoundError):
        read(site.store, "a", 0, 1000, version=version)


def test_overwritten_while_reading_is_never_a_mixture(site: Site) -> None:
    old, new = content(4_000_000, seed=1), content(4_000_000, seed=2)
    site.put("a", old)
    version = pinned_version(site, "a")
    overwritten = threading.Event()

    def overwrite(_valid: int) -> None:
        if not overwritten.is_set():
            overwritten.set()
            site.put("a", new)

    try:
        got = read(site.store, "a", 0, len(old), version=version, progress=overwrite)
    except StaleVersion:
        pass
    else:
        assert got == old
    assert overwritten.is_set()


# -- threads, processes


def test_eight_threads(site: Site) -> None:
    data = {f"d/{i}": content(300_000, seed=i) for i in range(8)}
    for path, body in data.items():
        site.put(path, body)
    ready = threading.Barrier(8, timeout=30)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        ready.wait()
        for _ in range(12):
            path = f"d/{dice.randrange(8)}"
            start, length = dice.randrange(300_000), dice.randrange(1, 200_000)
            version = site.store.info(path).version
            assert (
                read(site.store, path, start, length, version=version) == data[path][start : start + length]
            )

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result(timeout=60)


def test_use_after_fork(site: Site) -> None:
    data = content(300_000)
    site.put("a", data)
    version = site.store.info("a").version
    assert read(site.store, "a", 0, len(data), version=version) == data

    def child() -> None:
        assert read(site.store, "a", 0, len(data), version=version) == data
        assert site.store.info("a").size == len(data)
        assert [entry.path for entry in site.store.list("")] == ["a"]
        if site.capabilities.writes:
            site.store.write("child", b"x")
            assert site.store.info("child").size == 1

    in_a_fork(child)
    assert read(site.store, "a", 0, len(data), version=version) == data, "the child broke the parent's"


def test_close_is_idempotent(site: Site) -> None:
    site.put("a", b"x")
    site.store.info("a")
    site.store.close()
    site.store.close()


# -- writing


@pytest.fixture
def writable(site: Site) -> Site:
    assert site.capabilities.writes
    return site


@pytest.fixture
def read_only(site: Site) -> Site:
    assert not site.capabilities.writes
    return site


@pytest.fixture
def hierarchical(site: Site) -> Site:
    assert site.capabilities.directories
    return site


def test_read_only_store_says_so(read_only: Site) -> None:
    read_only.put("a", b"x")
    before = read_only.requests_seen()
    for call in (
        lambda: read_only.store.write("a", b"y"),
        lambda: read_only.store.open_writer("a"),
        lambda: read_only.store.delete("a"),
        lambda: read_only.store.make_directory("d"),
    ):
        with pytest.raises(io.UnsupportedOperation, match="read-only"):
            call()
    assert read_only.requests_seen() == before


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_write_then_read(writable: Site, kind: type) -> None:
    data = content(700_000)
    info = writable.store.write("new/dir/a", kind(data))
    assert (info.path, info.size, info.is_dir) == ("new/dir/a", len(data), False)
    assert info == writable.store.info("new/dir/a")
    assert read(writable.store, "new/dir/a", 0, len(data) + 1, version=info.version) == data


def test_write_of_nothing(writable: Site) -> None:
    assert writable.store.write("empty", b"").size == 0
    assert writable.store.info("empty").size == 0


def test_write_replaces_the_file_as_a_whole(writable: Site) -> None:
    first = writable.store.write("a", content(1000, seed=1))
    second = writable.store.write("a", content(10, seed=2))
    assert read(writable.store, "a", 0, 1000) == content(10, seed=2)
    if first.version:
        assert first.version != second.version
        with pytest.raises(StaleVersion):
            read(writable.store, "a", 0, 10, version=first.version)


def test_writer_shows_nothing_before_commit(writable: Site) -> None:
    pieces = [content(400_000, seed=i) for i in range(3)]
    with writable.store.open_writer("d/a") as writer:
        for piece in pieces:
            assert writer.write(piece) == len(piece)
        with pytest.raises(FileNotFoundError):
            writable.store.info("d/a")
        info = writer.commit()
        assert writer.commit() == info, "commit is idempotent"
        writer.abort()  # after commit: nothing
        with pytest.raises(ValueError):
            writer.write(b"late")
    assert info == writable.store.info("d/a")
    assert read(writable.store, "d/a", 0, 2_000_000, version=info.version) == b"".join(pieces)


def test_writer_commits_at_the_end_of_its_block(writable: Site) -> None:
    with writable.store.open_writer("a") as writer:
        writer.write(b"abc")
    assert read(writable.store, "a", 0, 10) == b"abc"


def test_writer_keeps_the_old_version_until_commit(writable: Site) -> None:
    old = writable.store.write("a", content(1000, seed=1))
    with writable.store.open_writer("a") as writer:
        writer.write(content(500, seed=2))
        assert read(writable.store, "a", 0, 1000, version=old.version) == content(1000, seed=1)
        writer.commit()
    assert read(writable.store, "a", 0, 1000) == content(500, seed=2)


def test_writer_aborted_by_an_exception_leaves_nothing(writable: Site) -> None:
    def fail_half_way(path: str) -> None:
        with writable.store.open_writer(path) as writer:
            writer.write(content(300_000))
            raise RuntimeError("boom")

    writable.store.write("keep", b"kept")
    for path in ("d/new", "keep"):
        with pytest.raises(RuntimeError, match="boom"):
            fail_half_way(path)
    assert [entry.path for entry in writable.store.list("", recursive=True)] == ["keep"]
    assert read(writable.store, "keep", 0, 10) == b"kept"


def test_writer_aborted_by_hand(writable: Site) -> None:
    with writable.store.open_writer("a") as writer:
        writer.write(b"x")
        writer.abort()
        writer.abort()
        with pytest.raises(ValueError):
            writer.write(b"y")
        with pytest.raises(ValueError):
            writer.commit()
    with pytest.raises(FileNotFoundError):
        writable.store.info("a")


def test_writer_does_not_keep_the_buffer(writable: Site) -> None:
    buffer = bytearray(b"first")
    with writable.store.open_writer("a") as writer:
        writer.write(memoryview(buffer))
        buffer[:] = b"later"
        buffer.append(0)
    assert read(writable.store, "a", 0, 10) == b"first"


def test_append(writable: Site) -> None:
    if not writable.capabilities.appends:
        with pytest.raises(io.UnsupportedOperation):
            writable.store.open_writer("a", append=True)
        return
    with writable.store.open_writer("a", append=True) as writer:  # where nothing is, append creates
        writer.write(b"one ")
    before = writable.store.info("a")
    with writable.store.open_writer("a", append=True) as writer:
        writer.write(b"two ")
        writer.write(b"three")
        assert read(writable.store, "a", 0, 100) == b"one "
    assert read(writable.store, "a", 0, 100) == b"one two three"
    assert writable.store.info("a").version != before.version


# -- deleting and directories


def test_delete_a_file(writable: Site) -> None:
    writable.store.write("d/a", b"x")
    writable.store.write("d/b", b"x")
    writable.store.delete("d/a")
    assert [entry.path for entry in writable.store.list("d")] == ["d/b"]


@pytest.mark.parametrize("path", ["missing", "d/missing", "missing/below"])
def test_delete_what_is_not_there(writable: Site, path: str) -> None:
    writable.store.write("d/a", b"x")
    with pytest.raises(FileNotFoundError) as caught:
        writable.store.delete(path)
    assert caught.value.errno == errno.ENOENT


def test_delete_a_directory_that_is_not_empty(writable: Site) -> None:
    writable.store.write("d/sub/a", b"x")
    for path in ("d", "d/sub"):
        with pytest.raises(OSError) as caught:
            writable.store.delete(path)
        assert caught.value.errno == errno.ENOTEMPTY
    assert writable.store.info("d/sub/a").size == 1


def test_delete_an_empty_directory(writable: Site) -> None:
    writable.store.make_directory("d/empty")
    if not writable.capabilities.directories:
        return
    writable.store.delete("d/empty")
    with pytest.raises(FileNotFoundError):
        writable.store.info("d/empty")
    assert writable.store.info("d").is_dir


def test_make_directory_makes_parents_and_accepts_existing_ones(writable: Site) -> None:
    for path in ("x/y/z", "x/y/z", "x", ""):
        writable.store.make_directory(path)
    if writable.capabilities.directories:
        assert writable.store.info("x/y/z").is_dir
    writable.store.write("x/y/z/a", b"x")
    assert writable.store.info("x/y/z").is_dir


def test_file_and_directory_do_not_replace_each_other(hierarchical: Site) -> None:
    hierarchical.store.write("d/a", b"x")
    with pytest.raises(IsADirectoryError):
        hierarchical.store.write("d", b"y")
    with pytest.raises(NotADirectoryError):
        hierarchical.store.write("d/a/b", b"y")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        hierarchical.store.make_directory("d/a")
    assert read(hierarchical.store, "d/a", 0, 10) == b"x"
