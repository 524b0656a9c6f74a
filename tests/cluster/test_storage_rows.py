"""Row data sets in every kind of store, straight and through the cache."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import services
from private_home import private_home

from kara_cache import KaraStorage
from kara_cache.errors import FormatError, UnderStoreError
from kara_cache.serialization import NoSerializer
from kara_cache.storage.rows.row_check import RowCheck
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer

pytestmark = [
    pytest.mark.leaves_running("connections and read threads of the module's cluster and servers"),
    # oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
ROWS: list[dict[str, Any]] = [{"id": i, "text": "é雪" * (i % 400), "none": None} for i in range(600)]
RAW = {"serialization": NoSerializer()}


@dataclass
class Place:
    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def storage(self) -> KaraStorage:
        return KaraStorage(self.url, **self.options)


@pytest.fixture(scope="module")
def oss(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OssServer]:
    services.require_module("oss2")
    with OssServer(buckets=["bucket"]) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, oss: OssServer) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    (directory / "files").mkdir()
    mounts = {
        "data": f"file://{directory}/files",
        "oss": {"url": f"oss://{oss.host}/bucket", "options": oss_options(oss)},
    }
    with LocalCluster(2, mounts=mounts, directory=directory) as running:
        yield running


def oss_options(oss: OssServer) -> dict[str, Any]:
    keys = oss.credentials
    return {"app_key": keys.key_id, "app_secret": keys.key_secret, "use_ssl": False, "signature": "v1"}


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return hashlib.md5(request.node.nodeid.encode()).hexdigest()


@pytest.fixture
def oss_place(oss: OssServer, prefix: str) -> Iterator[Place]:
    yield Place(f"oss://{oss.host}/bucket/{prefix}", oss_options(oss))
    oss.faults.clear()


@pytest.fixture(params=["file", "oss", "s3", "kara::file", "kara::oss"])
def place(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Place:
    kind = request.param
    if kind == "file":
        return Place(f"file://{tmp_path}/db")
    if kind == "oss":
        return request.getfixturevalue("oss_place")
    if kind == "s3":
        options = {"endpoint_url": request.getfixturevalue("moto"), "app_key": "k", "app_secret": "s"}
        return Place(f"s3://bucket/{prefix}", options | {"region": "us-east-1", "addressing_style": "path"})
    running: LocalCluster = request.getfixturevalue("cluster")
    if kind == "kara::file":
        return Place(f"kara::file://{running.directory}/files/{prefix}", {"kara": running.client_options})
    below: Place = request.getfixturevalue("oss_place")
    return Place(f"kara::{below.url}", {**below.options, "kara": running.client_options})


def write(storage: KaraStorage, rows: list[Any], *, flush_every: int = 10**9, **options: Any) -> None:
    with storage.open("ns/a", "k", "w", "1", **options) as dataset:
        for number, row in enumerate(rows, 1):
            dataset.write(row)
            if number % flush_every == 0:
                dataset.flush()


def test_rows_in_any_store(place: Place) -> None:
    with place.storage() as storage:
        write(storage, ROWS[:400], flush_every=150)
        write(storage, ROWS[400:])
        with storage.open("ns/a", "k") as dataset:
            assert len(dataset) == len(ROWS)
            assert list(dataset) == ROWS
            assert [dataset.read() for _ in ROWS] == ROWS
            assert dataset.read() is None
            assert [dataset[i] for i in (0, 399, 400, -1)] == [ROWS[i] for i in (0, 399, 400, -1)]
            assert dataset.read_batch([599, 3, -600, 3]) == [ROWS[i] for i in (599, 3, 0, 3)]
            assert dataset[595:100:-50] == ROWS[595:100:-50]
            assert list(dataset.slice(390, 20)) == ROWS[390:410]
            assert dataset.verify() == RowCheck(600, 600, ())
            raw = dataset.read_raw_batch([17])[0]
            buffer = bytearray(len(raw))
            assert dataset.read_into(17, buffer) == len(raw)
            assert buffer == raw
        assert storage.get_row_meta("ns/a", "k") == {"latest": "1", "versions": ["1"], "api": 2}


def test_raw_rows_are_bytes(place: Place) -> None:
    rows = [b"", b"\0\xff" * 50, b"", b"x"]
    with place.storage() as storage:
        write(storage, rows, **RAW)
        with storage.open("ns/a", "k", **RAW) as dataset:
            for found in (list(dataset), dataset[:], [dataset[i] for i in range(4)], dataset[[0, 1, 2, 3]]):
                assert found == rows
                assert all(type(row) is bytes for row in found)


def test_no_rows(place: Place) -> None:
    with place.storage() as storage:
        write(storage, [])
        with storage.open("ns/a", "k") as dataset:
            assert (len(dataset), list(dataset), dataset.read()) == (0, [], None)
        write(storage, ROWS[:2])
        with storage.open("ns/a", "k") as dataset:
            assert list(dataset) == ROWS[:2]


def _part(dataset: RowDataset) -> list[Any]:
    with dataset:
        return dataset.read_batch([0, -1])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_in_other_processes(place: Place, method: str) -> None:
    with place.storage() as storage:
        write(storage, ROWS[:50])
        with storage.open("ns/a", "k") as dataset:
            assert dataset[3] == ROWS[3]
            with multiprocessing.get_context(method).Pool(2) as pool:
                jobs = [pool.apply_async(_part, (dataset.slice(at, 10),)) for at in (0, 20, 40)]
                assert [job.get(60) for job in jobs] == [[ROWS[at], ROWS[at + 9]] for at in (0, 20, 40)]
                pool.close()
                pool.join()
            carried = pickle.dumps(dataset)
        write(storage, ROWS[50:60])
        assert len(pickle.loads(carried)) == 50


def test_each_flush_is_a_segment_of_each_stream(oss: OssServer, oss_place: Place, prefix: str) -> None:
    with oss_place.storage() as storage:
        write(storage, [b"ab", b"c", b"", b"d"], flush_every=2, **RAW)
    at = f"{prefix}/row/ns/a/k/1"
    found = {
        name: bytes(oss.objects.get("bucket", f"{at}/{name}").data)
        for name in ("data/0.blk", "data/1.blk", "index/0.blk", "index/1.blk", "sums/0.blk", "sums/1.blk")
    }
    assert (found["data/0.blk"], found["data/1.blk"]) == (b"abc", b"d")
    assert [len(found[f"index/{i}.blk"]) for i in (0, 1)] == [16, 16]
    assert [len(found[f"sums/{i}.blk"]) for i in (0, 1)] == [32, 16]


def test_large_rows_are_sent_while_they_come(oss_place: Place) -> None:
    """A segment ends at `max_file_size`, and rows are there without a flush."""
    with oss_place.storage() as storage:
        with storage.open("ns/a", "k", "w", "1", **RAW, max_file_size=2 << 20) as dataset:
            for i in range(5):
                dataset.write(bytes([i]) * (1 << 20))
            with storage.open("ns/a", "k", **RAW) as reader:
                assert [row[0] for row in reader] == [0, 1, 2, 3]
        with storage.open("ns/a", "k", **RAW) as reader:
            assert [row[0] for row in reader] == [0, 1, 2, 3, 4]


# -- what goes wrong -------------------------------------------------------------------------------


def test_http_is_read_and_not_written(tmp_path: Path) -> None:
    with KaraStorage(f"file://{tmp_path}/db") as storage:
        write(storage, ROWS, max_file_size=50_001)
    with RudeHttpServer() as server:
        for path in tmp_path.rglob("*"):
            if path.is_file():
                server.put(path.relative_to(tmp_path).as_posix(), path.read_bytes())
        with KaraStorage(f"{server.url}/db") as storage:
            with storage.open("ns/a", "k") as dataset:
                assert list(dataset) == ROWS
                assert dataset[[5, -5]] == [ROWS[5], ROWS[-5]]
            with pytest.raises(io.UnsupportedOperation, match="can only be read"):
                storage.open("ns/a", "k", "w")


TORN = {
    "data": ("data/1.blk", b"torn", "cut off 4 bytes of data without index entries after row 3"),
    "index beyond the data": ("index/1.blk", b"\x30" + bytes(7), "8 bytes of index without data"),
    "half an index entry": ("index/1.blk", b"\x07\0\0", "3 bytes of index"),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_tail_is_cut(oss: OssServer, oss_place: Place, prefix: str, case: str) -> None:
    name, more, said = TORN[case]
    with oss_place.storage() as storage:
        write(storage, [b"one", b"", b"two"], **RAW)
        oss.objects.put("bucket", f"{prefix}/row/ns/a/k/1/{name}", more)
        with pytest.warns(RuntimeWarning, match=said):
            write(storage, [b"three"], **RAW)
        with storage.open("ns/a", "k", **RAW) as dataset:
            assert list(dataset) == [b"one", b"", b"two", b"three"]
            assert dataset.verify() == RowCheck(4, 4, ())


def test_a_tail_inside_a_segment_is_cut(oss: OssServer, oss_place: Place, prefix: str) -> None:
    """As the published package leaves it, which appends to objects."""
    with oss_place.storage() as storage:
        write(storage, [b"one", b"two"], **RAW)
        oss.objects.put("bucket", f"{prefix}/row/ns/a/k/1/data/0.blk", b"onetwotorn")
        with pytest.warns(RuntimeWarning, match="cut off 4 bytes"):
            write(storage, [b"three"], **RAW)
        with storage.open("ns/a", "k", **RAW) as dataset:
            assert list(dataset) == [b"one", b"two", b"three"]


def test_a_gap_is_not_closed(oss: OssServer, oss_place: Place, prefix: str) -> None:
    with oss_place.storage() as storage:
        write(storage, [b"one"], **RAW)
        oss.objects.put("bucket", f"{prefix}/row/ns/a/k/1/data/2.blk", b"stray")
        with pytest.raises(FormatError, match=r"1\.blk is missing, and 2\.blk is there"):
            write(storage, [b"two"], **RAW)


def test_a_second_writer_is_noticed(place: Place) -> None:
    with place.storage() as storage:
        first = storage.open("ns/a", "k", "w", "1", **RAW)
        first.write(b"first")
        if storage.location.local is not None:
            with pytest.raises(BlockingIOError, match="already open for writing"):
                storage.open("ns/a", "k", "w", "1")
        else:
            with storage.open("ns/a", "k", "w", "1", **RAW) as second:
                second.write(b"second")
            with pytest.raises(BlockingIOError, match="another writer has added 6 bytes"):
                first.flush()
        first.close()
        with storage.open("ns/a", "k", **RAW) as dataset:
            assert list(dataset) == ([b"first"] if storage.location.local is not None else [b"second"])


@pytest.mark.parametrize("stream", ["data", "index", "sums"])
def test_a_flush_that_fails(oss: OssServer, oss_place: Place, prefix: str, stream: str) -> None:
    """What was flushed before stays; the next writer goes on behind it."""
    options = {**oss_place.options, "retries": 0}
    with KaraStorage(oss_place.url, **options) as storage:
        dataset = storage.open("ns/a", "k", "w", "1", **RAW)
        dataset.write(b"one")
        dataset.flush()
        dataset.write(b"two")
        key = f"{prefix}/row/ns/a/k/1/{stream}/1.blk"
        oss.faults.add(Fault.error(500, "InternalError"), method="PUT", key=key)
        with pytest.raises(UnderStoreError):
            dataset.flush()
        with pytest.raises(RuntimeError, match="rows after row 1 are not stored"):
            dataset.flush()
        dataset.close()
        kept = [b"one", b"two"] if stream == "sums" else [b"one"]
        with storage.open("ns/a", "k", **RAW) as reader:
            assert list(reader) == kept
        if stream == "index":
            with pytest.warns(RuntimeWarning, match="cut off 3 bytes of data"):
                write(storage, [b"three"], **RAW)
        else:
            write(storage, [b"three"], **RAW)
        with storage.open("ns/a", "k", **RAW) as reader:
            assert list(reader) == [*kept, b"three"]


def test_a_worker_that_dies_costs_no_row(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    mounts = {"data": f"file://{tmp_path}/files"}
    with LocalCluster(2, mounts=mounts, directory=tmp_path / "cluster") as running:
        url = f"kara::file://{tmp_path}/files/db"
        with KaraStorage(url, kara=running.client_options) as storage:
            write(storage, ROWS)
            with storage.open("ns/a", "k") as dataset:
                assert dataset[0] == ROWS[0]
                running.workers[0].kill()
                assert list(dataset) == ROWS
                assert dataset.read_batch(range(599, 0, -7)) == ROWS[599:0:-7]


def test_with_nothing_configured(tmp_path: Path, oss: OssServer, oss_place: Place) -> None:
    """`kara::` starts this user's private worker, and the next process reads from its pages."""
    with oss_place.storage() as storage:
        write(storage, ROWS)
    code = f"""
from kara_cache import KaraStorage
with KaraStorage("kara::{oss_place.url}", **{oss_place.options!r}) as storage:
    rows = list(storage.open("ns/a", "k"))
    print(len(rows), rows[-1]["id"])
"""
    (tmp_path / "home").mkdir()
    with private_home(tmp_path / "home") as home:
        assert home.run(code).split() == ["600", "599"]
        assert home.starts() == 1
        oss.requests.clear()
        assert home.run(code).split() == ["600", "599"]
        assert oss.requests.data_gets() == []
        assert home.starts() == 1
