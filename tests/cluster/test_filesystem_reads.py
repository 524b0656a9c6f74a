"""The fsspec face, what is read and listed through it, over a real worker."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pytest
from mounted import Mounted, mounted

from kara_cache.errors import ConfigError, StaleVersion
from kara_cache.filesystem import KaraFileSystem
from kara_cache.kara_file import KaraFile


@pytest.fixture(scope="module")
def kara(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("reads"), workers=2) as found:
        yield found


@pytest.fixture
def fs(kara: Mounted) -> KaraFileSystem:
    return kara.filesystem()


@pytest.fixture
def tree(kara: Mounted, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A directory of the test's own: its name in the file system, and on the disk behind."""
    name = re.sub(r"\W+", "-", request.node.name)
    directory = kara.directory / name
    for path, data in {"a.txt": b"one\ntwo\n", "deep/b.txt": b"b", "deep/er/c.bin": b"c" * 3}.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    (directory / "empty").mkdir()
    return f"data/{name}", directory


def test_listings(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, _ = tree
    assert fs.ls(name, detail=False) == [f"{name}/a.txt", f"{name}/deep", f"{name}/empty"]
    assert fs.ls(f"kara://{name}/a.txt", detail=False) == [f"{name}/a.txt"]
    assert [entry["type"] for entry in fs.ls(f"/{name}")] == ["file", "directory", "directory"]
    assert list(fs.walk(name)) == [
        (name, ["deep", "empty"], ["a.txt"]),
        (f"{name}/deep", ["er"], ["b.txt"]),
        (f"{name}/deep/er", [], ["c.bin"]),
        (f"{name}/empty", [], []),
    ]
    assert fs.find(name) == [f"{name}/a.txt", f"{name}/deep/b.txt", f"{name}/deep/er/c.bin"]
    assert f"{name}/empty" in fs.find(name, withdirs=True)
    assert fs.find(name, maxdepth=1) == [f"{name}/a.txt"]
    assert fs.find(f"{name}/a.txt") == [f"{name}/a.txt"]
    assert fs.find(f"{name}/none") == []
    assert fs.du(name) == 12
    assert fs.du(name, total=False)[f"{name}/deep/er/c.bin"] == 3
    if hasattr(fs, "tree"):  # since fsspec 2025.2
        assert "c.bin (3B)" in fs.tree(name, recursion_limit=3, display_size=True)


def test_globs(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, _ = tree
    assert fs.glob(f"{name}/*.txt") == [f"{name}/a.txt"]
    assert fs.glob(f"kara:///{name}/**/*.txt") == [f"{name}/a.txt", f"{name}/deep/b.txt"]
    assert fs.glob(f"{name}/d*") == [f"{name}/deep"]
    assert fs.glob(f"{name}/**/er") == [f"{name}/deep/er"]
    assert fs.glob(f"{name}/*/") == [f"{name}/deep", f"{name}/empty"]
    assert fs.glob(f"{name}/none*") == []


def test_the_root_lists_the_mounts(fs: KaraFileSystem) -> None:
    assert fs.ls("", detail=False) == ["data"]
    assert fs.ls("kara://", detail=False) == fs.ls("/", detail=False) == ["data"]
    assert fs.isdir("")
    assert fs.isdir("data")


def test_names_lead_back_to_the_file(fs: KaraFileSystem, kara: Mounted, tree: tuple[str, Path]) -> None:
    name, _ = tree
    for found in fs.find(name):
        url = fs.unstrip_protocol(found)
        assert url == f"kara://{found}"
        with fs.open(found) as by_name, fsspec.open(url, **kara.options) as by_url:
            assert by_name.read() == by_url.read() == fs.cat(url)


def test_info(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, directory = tree
    info = fs.info(f"{name}/a.txt")
    assert (info["name"], info["size"], info["type"]) == (f"{name}/a.txt", 8, "file")
    assert info["version"] == info["ETag"]
    assert info["mtime"] == pytest.approx((directory / "a.txt").stat().st_mtime)
    assert fs.info(f"{name}/deep") == {"name": f"{name}/deep", "size": 0, "type": "directory"}
    assert fs.modified(f"{name}/a.txt") == fs.created(f"{name}/a.txt")
    assert datetime.now(timezone.utc) - fs.modified(f"{name}/a.txt") < timedelta(hours=1)
    assert (fs.exists(name), fs.isdir(name), fs.isfile(name)) == (True, True, False)
    assert fs.exists(f"{name}/none") is fs.isdir(f"{name}/none") is fs.isfile(f"{name}/none") is False
    with pytest.raises(FileNotFoundError):
        fs.info(f"{name}/none")
    with pytest.raises(NotImplementedError, match="ask the store"):
        fs.sign(name)


def test_checksum_and_ukey_follow_the_version(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, directory = tree
    before = fs.checksum(f"{name}/a.txt"), fs.ukey(f"{name}/a.txt")
    assert before == (fs.checksum(f"{name}/a.txt"), fs.ukey(f"{name}/a.txt"))
    (directory / "a.txt").write_bytes(b"longer than before")
    assert fs.checksum(f"{name}/a.txt") != before[0]
    assert fs.ukey(f"{name}/a.txt") != before[1]


def test_whole_files_and_parts(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, _ = tree
    path = f"{name}/a.txt"
    assert fs.cat(path) == fs.read_bytes(path) == fs.read(path) == b"one\ntwo\n"
    assert fs.cat_file(path, 1, 3) == b"ne"
    assert fs.cat_file(path, -4) == b"two\n"
    assert fs.cat_file(path, 2, -2) == b"e\ntw"
    assert fs.cat_file(path, 6, 2) == fs.cat_file(path, 100) == b""
    assert (fs.head(path, 3), fs.tail(path, 3), fs.tail(path, 0)) == (b"one", b"wo\n", b"")
    assert fs.read_block(path, 1, 4, b"\n") == b"two\n"
    assert fs.download_data(path).read() == b"one\ntwo\n"
    assert fs.read_text(path) == "one\ntwo\n"
    with pytest.raises(IsADirectoryError):
        fs.cat_ranges([name], 0, 1, on_error="raise")


def test_many_files_in_one_call(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, _ = tree
    a, b, c, none = f"{name}/a.txt", f"{name}/deep/b.txt", f"{name}/deep/er/c.bin", f"{name}/none"
    assert fs.cat([a, b]) == {a: b"one\ntwo\n", b: b"b"}
    assert fs.cat(name, recursive=True) == {a: b"one\ntwo\n", b: b"b", c: b"ccc"}
    assert fs.cat(f"{name}/*.txt") == {a: b"one\ntwo\n"}
    assert fs.cat([a, none], on_error="omit") == {a: b"one\ntwo\n"}
    assert isinstance(fs.cat([a, none], on_error="return")[none], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat([a, none])


def test_ranges(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, _ = tree
    a, none = f"{name}/a.txt", f"{name}/none"
    assert fs.cat_ranges([a, a, a], [0, 4, None], [3, None, -4]) == [b"one", b"two\n", b"one\n"]
    assert fs.cat_ranges([a, a], 1, 3, max_gap=100) == [b"ne", b"ne"]
    whole, missing = fs.cat_ranges([a, none], None, None)
    assert whole == b"one\ntwo\n"
    assert isinstance(missing, FileNotFoundError)
    assert fs.cat_ranges([], [], []) == []
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([a, none], 0, 1, on_error="raise")
    with pytest.raises(ValueError, match="2 paths, 1 starts"):
        fs.cat_ranges([a, a], [0], [1])


def test_random_access_is_what_bytes_say(fs: KaraFileSystem, kara: Mounted) -> None:
    data = random.Random(7).randbytes(5 << 20)
    (kara.directory / "big.bin").write_bytes(data)
    rng = random.Random(8)
    with fs.open("data/big.bin") as file:
        for _ in range(200):
            start, length = rng.randrange(len(data)), rng.choice([1, 100, 4096, 100_000, 2 << 20])
            file.seek(start)
            into = bytearray(length)
            count = file.readinto(into)
            assert into[:count] == data[start : start + length]
            assert file.tell() == start + count
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]
        assert file.read() == b""
        assert file.readinto(bytearray(1)) == 0
        assert file.seek(len(data) + 5) == len(data) + 5
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="before start"):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed file"):
        file.read()


def test_views(fs: KaraFileSystem, kara: Mounted) -> None:
    data = os.urandom(3 << 20)
    (kara.directory / "views.bin").write_bytes(data)
    (kara.directory / "small.bin").write_bytes(data[:100])
    for name, length in (("views.bin", 1 << 20), ("small.bin", 50)):
        for _ in range(2):  # the second time it is in the cache
            with fs.open(f"data/{name}") as file:
                view = file.view(10, length)
                assert view == data[10 : 10 + length]
                assert view.readonly
                assert file.view(file.size - 5, 100) == data[file.size - 5 : file.size]
                assert file.tell() == 0
                with pytest.raises(ValueError, match="at -1"):
                    file.view(-1, 5)
            assert view[5:] == data[15 : 10 + length], "a closed file takes no view away"
            with pytest.raises(ValueError, match="closed"):
                file.view(0, 1)


def test_lines(fs: KaraFileSystem, kara: Mounted) -> None:
    lines = [b"x" * random.Random(i).randrange(20_000) + b"\n" for i in range(50)] + [b"no end"]
    (kara.directory / "lines").write_bytes(b"".join(lines))
    with fs.open("data/lines") as file:
        assert file.readline() == lines[0]
        assert list(file) == lines[1:]
        file.seek(0)
        assert file.readlines() == lines
    with fs.open("data/lines", "r", newline="") as text:
        assert [line.encode() for line in text] == lines
    with fs.open("data/lines") as file, io.BufferedReader(file) as buffered:
        assert buffered.readlines() == lines


def test_an_open_file_stays_with_its_version(fs: KaraFileSystem, kara: Mounted) -> None:
    old, new = b"old" * 1_000_000, b"newer" * 1_000_000
    path = kara.directory / "changing.bin"
    path.write_bytes(old)
    with fs.open("data/changing.bin") as file:
        assert file.read(10) == old[:10]
        replacement = path.with_suffix(".new")
        replacement.write_bytes(new)
        replacement.replace(path)
        with pytest.raises(StaleVersion, match=r"changing\.bin"):
            file.read()
    assert fs.cat("data/changing.bin") == new


def test_pickles(fs: KaraFileSystem, kara: Mounted, tree: tuple[str, Path]) -> None:
    name, _ = tree
    with fs.open(f"{name}/a.txt") as file:
        file.seek(4)
        with pickle.loads(pickle.dumps(file)) as again:
            assert (again.tell(), again.read()) == (4, b"two\n")
    cached = fsspec.filesystem("kara", **kara.options)
    assert pickle.loads(pickle.dumps(cached)) is cached


def test_instances_share_one_client_across_threads(kara: Mounted) -> None:
    here = fsspec.filesystem("kara", **kara.options)
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(fsspec.filesystem, "kara", **kara.options).result()
    assert here is fsspec.filesystem("kara", **kara.options)
    assert here.client is there.client
    assert here.fsid == there.fsid


def _read_in_child(fs: KaraFileSystem, file: KaraFile, results: multiprocessing.Queue[object]) -> None:
    results.put((file.read(), fs.cat(file.path), fsspec.filesystem("kara", **fs.storage_options).ls("data")))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_other_processes(fs: KaraFileSystem, tree: tuple[str, Path], method: str) -> None:
    name, _ = tree
    context = multiprocessing.get_context(method)
    results = context.Queue()
    with fs.open(f"{name}/a.txt") as file:
        assert file.read(4) == b"one\n"
        child = context.Process(target=_read_in_child, args=(fs, file, results))
        child.start()
        rest, whole, listing = results.get(timeout=60)
        child.join(60)
    assert (rest, whole) == (b"two\n", b"one\ntwo\n")
    assert name in [entry["name"] for entry in listing]
    results.close()
    results.join_thread()


def test_threads_read_through_one_instance(fs: KaraFileSystem, kara: Mounted) -> None:
    data = random.Random(9).randbytes(3 << 20)
    (kara.directory / "threads.bin").write_bytes(data)
    gate = threading.Barrier(8)

    def read(seed: int) -> bool:
        gate.wait(60)
        start = random.Random(seed).randrange(len(data))
        with fs.open("data/threads.bin") as file:
            file.seek(start)
            return file.read(100_000) == data[start : start + 100_000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


def test_listings_are_kept_only_on_request(kara: Mounted, tree: tuple[str, Path]) -> None:
    name, directory = tree
    fresh, keeping = kara.filesystem(), kara.filesystem(use_listings_cache=True)
    assert fresh.ls(name) == keeping.ls(name)
    (directory / "later.txt").write_bytes(b"later")
    assert fresh.exists(f"{name}/later.txt")
    assert not keeping.exists(f"{name}/later.txt")
    assert f"{name}/later.txt" not in keeping.ls(name, detail=False)
    assert keeping.info(f"{name}/later.txt", refresh=True)["size"] == 5
    assert f"{name}/later.txt" in keeping.ls(name, detail=False, refresh=True)
    (directory / "last.txt").write_bytes(b"")
    keeping.pipe(f"{name}/through.txt", b"")
    assert f"{name}/last.txt" in keeping.ls(name, detail=False)
    (directory / "more.txt").write_bytes(b"")
    keeping.invalidate_cache()
    assert keeping.exists(f"{name}/more.txt")


def test_a_listing_kept_is_not_the_callers_to_change(kara: Mounted, tree: tuple[str, Path]) -> None:
    name, _ = tree
    fs = kara.filesystem(use_listings_cache=True)
    fs.ls(name)[0]["name"] = "changed"
    fs.ls(name).clear()
    assert fs.ls(name, detail=False)[0] == f"{name}/a.txt"


def test_unknown_options_are_errors(kara: Mounted) -> None:
    with pytest.raises(ConfigError, match="did you mean 'worker_hosts'"):
        fsspec.filesystem("kara", worker_host="127.0.0.1:1")
    with pytest.raises(TypeError, match="cache_tpye"):
        kara.filesystem().open("data/x", cache_tpye="none")
    with pytest.raises(io.UnsupportedOperation, match=r"r\+b"):
        kara.filesystem().open("data/x", "r+b")


def test_fsspec_options_for_reading_are_accepted(fs: KaraFileSystem, tree: tuple[str, Path]) -> None:
    name, _ = tree
    with fs.open(f"{name}/a.txt", cache_type="readahead", block_size=4, cache_options={}, size=8) as file:
        assert file.read() == b"one\ntwo\n"
        assert (file.size, file.details["size"], file.full_name) == (8, 8, f"kara://{name}/a.txt")
    with fs.open(f"{name}/a.txt", "rt", encoding="utf-8") as text:
        assert text.readline() == "one\n"
    with pytest.raises(IsADirectoryError):
        fs.open(name)
    with pytest.raises(FileNotFoundError):
        fs.open(f"{name}/none")
