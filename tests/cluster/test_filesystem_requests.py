"""How many requests the fsspec face makes, as real workers count them; and that it sees its own writes."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from kara_cache.errors import StaleVersion
from kara_cache.file_answer import MAX_BYTES
from kara_cache.filesystem import KaraFileSystem
from kara_worker.testing.cluster import LocalCluster

SMALL = bytes(range(256)) * 16
WAIT_S = 20.0
COUNTED = ("info", "read", "files", "ranges", "pages", "list")


class Place:
    """Three workers over one directory, mounted with each freshness."""

    def __init__(self, cluster: LocalCluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory

    def filesystem(self, **options: Any) -> KaraFileSystem:
        return KaraFileSystem(
            **{**self.cluster.client_options, "local_reads": False, **options}, skip_instance_cache=True
        )

    def requests(self) -> dict[str, int]:
        """Answered since the workers started, by what was asked."""
        totals = dict.fromkeys(COUNTED, 0)
        for worker in self.cluster.workers:
            for sample, value in worker.metrics().items():
                name, _, labels = sample.partition("{")
                if name == "kara_worker_requests_total":
                    method = labels.partition('method="')[2].partition('"')[0]
                    if method in totals:
                        totals[method] += int(value)
        return totals

    def wait_until_kept(self, *paths: str) -> None:
        """Until every page of these files is on SSD: it is a moment after the reader has its bytes."""
        deadline = time.monotonic() + WAIT_S
        client = self.filesystem().client
        for path in paths:
            while not all(found["cached"] == found["pages"] for found in client.explain(path)["workers"][:1]):
                assert time.monotonic() < deadline, f"{path} is not on SSD after {WAIT_S} s"
                time.sleep(0.01)

    def store_looks(self, verb: str = "info") -> int:
        """Requests of the workers to the store."""
        return int(
            sum(
                value
                for worker in self.cluster.workers
                for sample, value in worker.metrics().items()
                if sample.startswith("kara_worker_store_requests_total") and f'verb="{verb}"' in sample
            )
        )


class Count:
    """Requests made inside the block."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.made: dict[str, int] = {}

    def __enter__(self) -> Count:
        self._before = self._place.requests()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._place.requests()
        self.made = {
            name: after[name] - self._before[name] for name in COUNTED if after[name] != self._before[name]
        }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("requests")
    url = f"file://{directory}"
    mounts = {
        "data": url,
        "minute": {"url": url, "freshness": "max_age=60s"},
        "fixed": {"url": url, "freshness": "immutable"},
    }
    with LocalCluster(3, mounts=mounts, page_bytes="64KiB") as cluster:
        made = Place(cluster, directory)
        yield made
        made.filesystem().close()


@pytest.fixture(autouse=True)
def no_detours(place: Place) -> Iterator[None]:
    """Bytes that came another way would be right, too, and hide what is wrong."""
    yield
    assert place.filesystem().client.metrics.fallbacks.keys() <= {"stale"}


def write(place: Place, name: str, data: bytes) -> None:
    path = place.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read_whole(fs: KaraFileSystem, path: str) -> bytes:
    with fs.open(path) as file:
        return bytes(file.read())


@pytest.mark.parametrize("size", [1, len(SMALL), 64 << 10, 150_000, 256 << 10])
def test_open_read_close_of_a_small_file_is_one_request(place: Place, size: int) -> None:
    data = (SMALL * 64)[:size]
    name = f"one/{size}"
    write(place, name, data)
    fs = place.filesystem()
    with Count(place) as first:
        assert read_whole(fs, f"data/{name}") == data
    assert first.made == {"info": 1, "read": 1}, "what is not cached is not waited for by who opens"
    place.wait_until_kept(f"/data/{name}")
    with Count(place) as second:
        assert read_whole(fs, f"data/{name}") == data
        assert fs.cat_file(f"data/{name}") == data
    assert second.made == {"info": 2}
    with Count(place) as third, fs.open(f"data/{name}") as file:
        head = file.read(1)
        buffer = bytearray(size)
        count = file.readinto(buffer)
        assert head + buffer[:count] == data
        assert pickle.loads(pickle.dumps(file)).tell() == size
        file.seek(0)
        assert file.readline() == data[: data.find(b"\n") + 1 or None]
    assert third.made == {"info": 1}


def test_a_range_comes_with_the_facts_whatever_the_size_of_the_file(place: Place) -> None:
    data = SMALL * 300
    write(place, "big", data)
    fs = place.filesystem()
    assert fs.cat_file("data/big") == data
    place.wait_until_kept("/data/big")
    with Count(place) as counted:
        assert fs.cat_file("data/big", 65_000, 66_000) == data[65_000:66_000], "across two pages"
        assert fs.cat_file("data/big", 100, 200_100) == data[100:200_100], "and four"
        assert fs.head("data/big", 10) == data[:10]
        assert fs.cat_file("data/big", len(data) - 5, len(data) + 5) == data[-5:]
    assert counted.made == {"info": 4}
    with Count(place) as large, fs.open("data/big") as file:
        assert file.read() == data
    assert large.made == {"info": 1, "read": 1}
    assert fs.tail("data/big", 7) == data[-7:]
    assert fs.cat_file("data/big", 10, 10) == b""
    assert fs.cat_file("data/big", len(data) + 1, len(data) + 2) == b""
    assert fs.cat_file("data/big", -10, -5) == data[-10:-5]


@pytest.mark.parametrize("interleaved", [False, True])
def test_who_reads_in_sequence_gets_read_ahead_and_nobody_else(place: Place, interleaved: bool) -> None:
    data = random.Random(5).randbytes(3 << 20)
    write(place, "sequence", data)
    fs = place.filesystem(timeout_s=27.0)
    with fs.open("data/sequence") as file:
        for start in range(1 << 20, 3 << 20, 300_000):
            file.seek(start)
            assert file.read(1000) == data[start : start + 1000]
    assert fs.client.metrics.read_ahead == {"fetched": 0, "hit": 0, "waste": 0}
    with fs.open("data/sequence") as file:
        out = bytearray()
        while piece := file.read(100_000):
            out += piece
            if interleaved and len(out) == 200_000:
                file.seek(2 << 20)  # here and back, as readers of archives do
                file.read(10)
                file.seek(len(out))
    assert out == data
    assert fs.client.metrics.read_ahead["hit"] > 1 << 20
    fs.close()


def test_empty_files_directories_and_missing_ones(place: Place) -> None:
    write(place, "odd/empty", b"")
    fs = place.filesystem()
    with Count(place) as counted:
        assert read_whole(fs, "data/odd/empty") == b""
        assert fs.cat_file("data/odd/empty") == b""
    assert counted.made == {"info": 2}
    with pytest.raises(IsADirectoryError):
        fs.open("data/odd")
    with pytest.raises(FileNotFoundError) as missing:
        fs.open("data/odd/none")
    assert missing.value.filename == "/data/odd/none"
    assert missing.value.errno == 2


def test_many_files_are_a_request_for_each_worker(place: Place) -> None:
    names = [f"many/{number:04}" for number in range(1000)]
    for number, name in enumerate(names):
        write(place, name, number.to_bytes(4, "big") * (number % 50))
    fs = place.filesystem()
    expected = {f"data/{name}": i.to_bytes(4, "big") * (i % 50) for i, name in enumerate(names)}
    for _ in ("from the store", "from the cache"):
        with Count(place) as counted:
            assert fs.cat([f"data/{name}" for name in names]) == expected
        made = dict(counted.made)
        # `expand_path` of a list asks what each of its entries is, and that is asked for together, too
        assert set(made) == {"files"}
        assert made["files"] <= 3
    with Count(place) as ranges:
        picked = [f"data/{name}" for name in names[1:50]]
        assert fs.cat_ranges(picked, 0, 4) == [i.to_bytes(4, "big") for i in range(1, 50)]
    assert sum(ranges.made.values()) <= 6


def test_what_is_wrong_with_one_of_many_is_its_own_answer(place: Place) -> None:
    write(place, "mixed/a", b"a")
    write(place, "mixed/large", SMALL * 100)
    (place.directory / "mixed" / "dir").mkdir()
    fs = place.filesystem()
    paths = ["data/mixed/a", "data/mixed/none", "data/mixed/dir", "data/mixed/large", "nowhere/x"]
    found = fs._cat_batch([(path, None, None) for path in paths], raising=False)
    assert found[0] == b"a"
    assert isinstance(found[1], FileNotFoundError)
    assert found[1].filename == "/data/mixed/none"
    assert isinstance(found[2], IsADirectoryError)
    assert found[3] == SMALL * 100
    assert isinstance(found[4], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat(["data/mixed/a", "data/mixed/none"])


def test_an_immutable_file_is_looked_up_once(place: Place) -> None:
    write(place, "still/file", SMALL)
    fs = place.filesystem()
    assert read_whole(fs, "fixed/still/file") == SMALL
    with Count(place) as counted:
        for _ in range(5):
            assert fs.info("fixed/still/file")["size"] == len(SMALL)
            assert fs.exists("fixed/still/file")
    assert counted.made == {}
    with Count(place) as reading:
        assert read_whole(fs, "fixed/still/file") == SMALL
    assert reading.made == {"read": 1}
    place.wait_until_kept("/fixed/still/file")
    looks = place.store_looks()
    other = place.filesystem(timeout_s=29.0)  # has a client of its own, as another process has
    with Count(place) as elsewhere:
        assert read_whole(other, "fixed/still/file") == SMALL
    other.close()
    assert elsewhere.made == {"info": 1}, "it asks a worker, which knows"
    assert place.store_looks() == looks


def test_revalidate_asks_the_store_at_every_open(place: Place) -> None:
    fs = place.filesystem()
    for number in range(3):
        write(place, "fresh/file", SMALL + bytes(number))
        looks = place.store_looks()
        assert read_whole(fs, "data/fresh/file") == SMALL + bytes(number)
        assert place.store_looks() == looks + 1
    write(place, "fresh/file", b"another")
    assert fs.cat(["data/fresh/file", "data/fresh/file"]) == {"data/fresh/file": b"another"}


@pytest.mark.parametrize("mount", ["data", "minute", "fixed"])
def test_who_finds_a_version_gone_gets_the_new_one_by_opening_again(place: Place, mount: str) -> None:
    fs, name = place.filesystem(), f"gone-{mount}"
    write(place, name, SMALL * 100)
    with fs.open(f"{mount}/{name}") as file:
        write(place, name, b"another file")  # against the rules of a mount that is immutable
        with pytest.raises(StaleVersion):
            file.read()
    assert read_whole(fs, f"{mount}/{name}") == b"another file"


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("call", ["cat_file", "cat_ranges", "cat"])
def test_a_file_that_is_replaced_between_look_up_and_read(
    place: Place, call: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names a path opened nothing, and cannot open it again."""
    fs, name = place.filesystem(), f"replaced-{call}-{times}"
    large = SMALL * (1 + (MAX_BYTES // len(SMALL)))  # comes by a read of its own
    write(place, name, large)
    new = [bytes([number]) * (len(large) + number) for number in range(1, times + 1)]
    waiting = list(new)
    for method in ("read", "read_ranges"):
        read = getattr(fs.client, method)

        def replaced(*arguments: Any, read: Any = read) -> Any:
            if waiting:
                write(place, name, waiting.pop(0))
            return read(*arguments)

        monkeypatch.setattr(fs.client, method, replaced)
    path = f"data/{name}"
    calls = {
        "cat_file": lambda: fs.cat_file(path),
        "cat_ranges": lambda: b"".join(fs.cat_ranges([path] * 2, [0, 9], [9, None], on_error="raise")),
        "cat": lambda: fs.cat([path, path])[path],
    }
    if times < 3:
        assert calls[call]() == new[-1]
    else:
        with pytest.raises(StaleVersion):
            calls[call]()


@pytest.mark.parametrize("mount", ["data", "minute", "fixed"])
def test_own_writes_are_seen_at_once(place: Place, mount: str) -> None:
    fs = place.filesystem()
    for number in range(12):  # files of one directory have different owners
        path = f"{mount}/own-{mount}/{number}"
        fs.pipe_file(path, b"first")
        assert read_whole(fs, path) == b"first"
        assert len(fs.ls(f"{mount}/own-{mount}", detail=False)) == number + 1
        fs.pipe_file(path, b"the second")
        assert fs.info(path)["size"] == 10
        assert fs.cat_file(path) == b"the second"
        assert fs.cat([path, path])[path] == b"the second"
    fs.rm(f"{mount}/own-{mount}/3")
    assert not fs.exists(f"{mount}/own-{mount}/3")
    assert len(fs.ls(f"{mount}/own-{mount}", detail=False)) == 11
    assert len(fs.find(f"{mount}/own-{mount}")) == 11


@pytest.mark.parametrize(("mount", "asked"), [("data", 3), ("minute", 1), ("fixed", 1)])
def test_listings_are_kept_as_long_as_the_mount_trusts_them(place: Place, mount: str, asked: int) -> None:
    for number in range(20):
        write(place, f"kept-{mount}/{number:02}", b"x")
    fs = place.filesystem(timeout_s=28.0)
    before = place.store_looks("list")
    for _ in range(3):
        assert len(fs.ls(f"{mount}/kept-{mount}", detail=False)) == 20
    assert place.store_looks("list") - before == asked
    write(place, f"kept-{mount}/new", b"by somebody else")
    assert len(fs.ls(f"{mount}/kept-{mount}")) == (21 if mount == "data" else 20)
    fs.pipe_file(f"{mount}/kept-{mount}/own", b"mine")
    assert len(fs.ls(f"{mount}/kept-{mount}")) == 22, "what is asked after an own write is asked of the store"
    assert len(fs.find(f"{mount}/kept-{mount}")) == 22
    fs.close()


GLOBS = [
    "*", "*.txt", "a*", "a?c/*", "a/*", "a/[xy]*", "**", "a/**", "**/*.txt", "**/x*", "a/**/deep", "*/",
    "a/*/", "**/", "b/none*", "none/*", "a/b/*", "a.txt", "*/*.txt", "a-b/*",
]  # fmt: skip


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs_find_what_fsspec_finds(place: Place, pattern: str) -> None:
    for name in ("a.txt", "a/x.txt", "a/y", "a/b/x1", "a/b/deep/z.txt", "a-b/c.txt", "abc/x", "b/x.txt"):
        write(place, f"globs/{name}", b"x")
    fs, top = place.filesystem(), str(place.directory / "globs")
    local = fsspec.filesystem("file").glob(f"{top}/{pattern}", detail=True)
    ours = fs.glob(f"data/globs/{pattern}", detail=True)
    assert [name[len("data/globs") :] for name in ours] == [name[len(top) :] for name in local]
    assert [entry["type"] for entry in ours.values()] == [entry["type"] for entry in local.values()]
    assert fs.glob(f"kara://data/globs/{pattern}") == [*ours]


@pytest.mark.parametrize("pattern", ["*7", "**/*7"])
def test_a_glob_of_a_large_directory_remembers_only_what_matches(
    place: Place, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(500):
        write(place, f"large/{number:03}", b"")
    fs, made = place.filesystem(), []
    entry = fs.entry
    monkeypatch.setattr(fs, "entry", lambda file, name: made.append(name) or entry(file, name))
    assert len(fs.glob(f"data/large/{pattern}")) == len(made) == 50
