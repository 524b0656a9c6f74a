"""Reading rows: the same as a Python list, whatever way they are asked for."""

from __future__ import annotations

import array
import ctypes
import gc
import itertools
import math
import mmap
import multiprocessing
import operator
import os
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from services import require_module

from kara_cache import KaraStorage
from kara_cache.errors import ConfigError, FormatError, UnderStoreError
from kara_cache.serialization import MsgpackSerializer, NoSerializer, PickleSerializer, Serializer
from kara_cache.storage.rows import row_dataset
from kara_cache.storage.rows.mapped_bytes import MappedBytes
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_cache.storage.rows.row_indices import row_numbers

ROWS = [{"id": i, "text": "é雪" * (i % 60), "empty": None} for i in range(700)]
RAW = [bytes([i % 251]) * (i * 7 % 90) for i in range(500)]  # with empty ones, also the first


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> KaraStorage:
    storage = KaraStorage(f"file://{tmp_path_factory.mktemp('rows')}")
    write(storage, "json", ROWS, max_file_size=1001)  # rows and index words go over the ends of segments
    write(storage, "pages", ROWS, max_file_size=mmap.PAGESIZE)  # segments that are mapped as one
    write(storage, "one", ROWS)
    write(storage, "raw", RAW, serialization=NoSerializer(), max_file_size=777)
    write(storage, "none", [])
    return storage


def write(storage: KaraStorage, key: str, rows: list[Any], **options: Any) -> None:
    with storage.open("ns", key, "w", "1", **options) as dataset:
        for row in rows:
            assert dataset.write(row) is True


@pytest.fixture(params=["json", "pages", "one"])
def dataset(storage: KaraStorage, request: pytest.FixtureRequest) -> Iterator[RowDataset]:
    with storage.open("ns", request.param) as dataset:
        yield dataset


def test_a_sequence(dataset: RowDataset) -> None:
    assert len(dataset) == dataset.size() == len(ROWS)
    assert list(dataset) == ROWS
    assert [dataset[i] for i in range(len(ROWS))] == ROWS
    assert [dataset[-i - 1] for i in range(len(ROWS))] == ROWS[::-1]
    assert dataset[True] == ROWS[1]


@given(
    start=st.none() | st.integers(-800, 800),
    stop=st.none() | st.integers(-800, 800),
    step=st.none() | st.integers(-90, 90).filter(bool),
)
def test_slices(storage: KaraStorage, start: int | None, stop: int | None, step: int | None) -> None:
    with storage.open("ns", "json") as dataset:
        assert dataset[start:stop:step] == ROWS[start:stop:step]


@given(indices=st.lists(st.integers(-len(ROWS), len(ROWS) - 1), max_size=80))
def test_batches_in_the_order_of_the_caller(storage: KaraStorage, indices: list[int]) -> None:
    wanted = [ROWS[i] for i in indices]
    with storage.open("ns", "json") as dataset:
        assert dataset.read_batch(indices) == dataset[indices] == wanted
        assert dataset.read_batch(tuple(indices)) == dataset.read_batch(iter(indices)) == wanted
        assert dataset.read_batch(array.array("q", indices)) == wanted


@given(indices=st.lists(st.integers(-len(RAW), len(RAW) - 1), max_size=80), data=st.data())
def test_arrays(storage: KaraStorage, indices: list[int], data: st.DataObject) -> None:
    np = require_module("numpy")
    kind = data.draw(st.sampled_from(["int64", "int32", "int16"]))
    with storage.open("ns", "raw", serialization=NoSerializer()) as dataset:
        assert dataset[np.array(indices, kind)] == [RAW[i] for i in indices]
        assert dataset.read_raw_batch(np.array(indices, kind)) == [RAW[i] for i in indices]
        if indices:
            assert dataset[np.int32(indices[0])] == RAW[indices[0]]


def test_arrays_of_bool(storage: KaraStorage) -> None:
    np = require_module("numpy")
    with storage.open("ns", "json") as dataset:
        assert dataset[np.arange(len(ROWS)) % 3 == 1] == ROWS[1::3]
        assert dataset[np.zeros(len(ROWS), bool)] == []
        with pytest.raises(IndexError, match="3 values for 700 rows"):
            dataset[np.ones(3, bool)]
        with pytest.raises(TypeError, match="one dimension"):
            dataset[np.zeros((2, 2), int)]
        with pytest.raises(TypeError, match="float64"):
            dataset[np.zeros(2)]


@pytest.mark.parametrize("index", [700, -701, 10**30, [3, 700], [-701], range(0, 1400, 700)])
def test_out_of_range(dataset: RowDataset, index: Any) -> None:
    with pytest.raises(IndexError, match="there are 700 rows"):
        dataset[index]


@pytest.mark.parametrize("index", [1.0, None, "1", b"1", [1, 2.5], [None], object()])
def test_no_index(dataset: RowDataset, index: Any) -> None:
    with pytest.raises(TypeError, match="Dataset index must be int"):
        dataset[index]


def test_rows_that_are_fetched_and_become_objects_later(dataset: RowDataset) -> None:
    fetched = dataset.fetch_batch([5, -1, 5])
    assert len(fetched) == 3
    assert fetched.nbytes == sum(map(len, dataset.read_raw_batch([5, -1, 5])))
    assert list(fetched) == list(fetched) == [ROWS[5], ROWS[-1], ROWS[5]]


def test_batches_without_numpy(storage: KaraStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    indices = list(range(699, -1, -3))
    with storage.open("ns", "json") as dataset:
        assert dataset.read_batch(indices) == ROWS[::-3]


def test_numbers_of_rows_are_checked_before_anything_is_read() -> None:
    assert row_numbers([0, -1], 10, 5) == [10, 14]
    assert row_numbers(range(3), 0, 5) == range(3)
    with pytest.raises(IndexError, match="Index `5`"):
        row_numbers([0, 5], 10, 5)


def test_segments_of_whole_pages_are_one_mapping(storage: KaraStorage, tmp_path: Path) -> None:
    for name, count in (("pages", 1), ("json", 125), ("one", 1)):
        stream = MappedBytes(str(storage.location.local / "row" / "ns" / name / "1" / "data"))
        assert len(stream.segments) == count
        with open(tmp_path / "all", "wb") as file:
            for path in sorted(Path(stream.directory).iterdir(), key=lambda path: int(path.stem)):
                file.write(path.read_bytes())
        assert stream.read(0, stream.size) == (tmp_path / "all").read_bytes()


def test_where_mappings_cannot_be_placed(storage: KaraStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with storage.open("ns", "pages") as dataset:
        assert list(dataset) == [dataset[i] for i in range(len(ROWS))] == ROWS
        assert dataset.read_batch(range(699, -1, -1)) == ROWS[::-1]


# -- windows ---------------------------------------------------------------------------------------


@given(windows=st.lists(st.tuples(st.integers(0, 800), st.none() | st.integers(0, 800)), max_size=4))
def test_windows_in_windows(storage: KaraStorage, windows: list[tuple[int, int | None]]) -> None:
    wanted = ROWS
    with storage.open("ns", "json") as whole:
        part = in_place = whole
        in_place = whole.slice()
        for start, length in windows:
            wanted = wanted[start:] if length is None else wanted[start : start + length]
            part = part.slice(start, length)
            in_place.slice_(start, length)
        for found in (part, in_place, pickle.loads(pickle.dumps(part))):
            assert list(found) == wanted
            assert len(found) == len(wanted)
            assert found[-3:] == wanted[-3:]
            assert found.read() == (wanted[0] if wanted else None)
            assert found.nbytes() == whole.nbytes()


def test_window_when_opened(storage: KaraStorage) -> None:
    with storage.open("ns", "json", start=100, length=20) as dataset:
        assert list(dataset) == ROWS[100:120]
    with storage.open("ns", "json", start=690, length=1000) as dataset:
        assert list(dataset) == ROWS[690:]
    with storage.open("ns", "json", start=1000) as dataset:
        assert len(dataset) == 0
        assert dataset.read() is None


@pytest.mark.parametrize(("start", "length"), [(-2, None), (0, -1), (-1, 1)])
def test_no_window(dataset: RowDataset, start: int, length: int | None) -> None:
    with pytest.raises(ValueError, match="a window begins at 0"):
        dataset.slice(start, length)


def test_a_window_outlives_its_parent(storage: KaraStorage) -> None:
    with storage.open("ns", "json") as dataset:
        part = dataset.slice(5, 5)
    assert list(part) == ROWS[5:10]
    part.close()
    with pytest.raises(RuntimeError, match="closed"):
        part[0]


@pytest.mark.parametrize("use", [len, list, RowDataset.read, lambda dataset: dataset[[1, 400]]])
@pytest.mark.parametrize("end", [RowDataset.close, lambda dataset: None])
def test_files_are_given_back_without_the_collector(storage: KaraStorage, use: Any, end: Any) -> None:
    """It may be switched off, as training programs do."""
    gc.collect()
    gc.disable()
    try:
        before = os.listdir("/proc/self/fd")
        dataset = storage.open("ns", "json")
        use(dataset)
        end(dataset)
        del dataset
        assert os.listdir("/proc/self/fd") == before
    finally:
        gc.enable()


# -- a file ----------------------------------------------------------------------------------------


@given(moves=st.lists(st.tuples(st.integers(-40, 40), st.sampled_from([0, 1, 2]), st.integers(0, 3))))
def test_reading_as_from_a_file(storage: KaraStorage, moves: list[tuple[int, int, int]]) -> None:
    rows, at = ROWS[10:40], 0
    with storage.open("ns", "json", start=10, length=30, buffer_size=300) as dataset:
        for offset, whence, reads in moves:
            at = max(0, min((offset, at + offset, len(rows) - offset)[whence], len(rows)))
            assert dataset.seek(offset, whence) == at == dataset.tell()
            for _ in range(reads):
                assert dataset.read() == (rows[at] if at < len(rows) else None)
                at = min(at + 1, len(rows))
                assert dataset.tell() == at


def test_iteration_is_from_the_start_and_apart_from_read(dataset: RowDataset) -> None:
    assert [dataset.read(), dataset.read()] == ROWS[:2]
    first, second = iter(dataset), iter(dataset)
    assert [next(first), next(first), next(second)] == [ROWS[0], ROWS[1], ROWS[0]]
    assert dataset.read() == ROWS[2]
    assert dataset.pread(9) == ROWS[9]
    assert dataset.tell() == 3


def test_pread_past_the_end(dataset: RowDataset) -> None:
    with pytest.raises(EOFError, match="Index `700`"):
        dataset.pread(700)


@pytest.mark.parametrize("whence", [3, -1, "0"])
def test_seek_refuses_another_whence(dataset: RowDataset, whence: Any) -> None:
    with pytest.raises(ValueError, match="whence"):
        dataset.seek(0, whence)


def test_into_a_buffer(storage: KaraStorage) -> None:
    with storage.open("ns", "raw", serialization=NoSerializer()) as dataset:
        buffer = bytearray(100)
        for i, row in enumerate(RAW):
            assert dataset.read_into(i, buffer) == len(row)
            assert buffer[: len(row)] == row
        assert dataset.read_into(-1, memoryview(buffer)) == len(RAW[-1])
        with pytest.raises(ValueError, match=r"row 12 has 84 bytes, the buffer 83"):
            dataset.read_into(12, memoryview(buffer)[:83])


def test_bytes_of_all_rows(storage: KaraStorage) -> None:
    with storage.open("ns", "raw", serialization=NoSerializer(), start=5) as dataset:
        assert dataset.nbytes() == sum(map(len, RAW))


def test_no_rows(storage: KaraStorage) -> None:
    with storage.open("ns", "none") as dataset:
        assert len(dataset) == 0
        assert list(dataset) == dataset[:] == dataset.read_batch([]) == []
        assert dataset.read() is None
        assert dataset.nbytes() == 0
        with pytest.raises(IndexError):
            dataset[0]


def test_closed(storage: KaraStorage) -> None:
    dataset = storage.open("ns", "json")
    assert not dataset.closed
    dataset.close()
    dataset.close()
    assert dataset.closed
    methods = (RowDataset.read, RowDataset.flush, RowDataset.verify)
    for use in (len, iter, list, operator.itemgetter(0), *methods):
        with pytest.raises(RuntimeError, match="closed"):
            use(dataset)
    with pytest.raises(RuntimeError, match="closed"):
        dataset.write({})
    assert repr(dataset).startswith("<RowDataset closed")


def test_repr_asks_the_store_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debuggers, warnings and `__del__` take it at any time, also when the store is gone."""

    def gone(*arguments: object, **options: object) -> None:
        raise UnderStoreError("the store is gone")

    with KaraStorage(f"file://{tmp_path}").open("ns", "key", "w", "1") as writer:
        monkeypatch.setattr(row_dataset, "RowReader", gone)
        assert repr(writer).startswith("<RowDataset open, mode 'w', ")


def test_not_writable(dataset: RowDataset) -> None:
    with pytest.raises(RuntimeError, match="Dataset is not writable"):
        dataset.write({})
    dataset.flush()


# -- opening ---------------------------------------------------------------------------------------


def test_what_is_not_there(storage: KaraStorage) -> None:
    with pytest.raises(ValueError, match="Dataset not exists"):
        storage.open("ns", "missing")
    with pytest.raises(ValueError, match="Dataset version `7` not found in dataset `json`; there are 1"):
        storage.open("ns", "json", version=7)
    with pytest.raises(ValueError, match="Please specify a version"):
        storage.open("ns", "missing", "w")


@pytest.mark.parametrize("mode", ["rw", "a", "wb", "", "R"])
def test_other_modes_change_nothing(storage: KaraStorage, mode: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown mode `{mode}`"):
        storage.open("ns", "made-by-mode", mode, "1")
    with pytest.raises(FileNotFoundError):
        storage.get_row_meta("ns", "made-by-mode")


def test_unknown_options_are_named(storage: KaraStorage) -> None:
    with pytest.raises(ConfigError, match=r"'bufer_size'.*known are start, length, buffer_size"):
        storage.open("ns", "json", bufer_size=1)
    with pytest.raises(ConfigError, match="buffer_size: expected at least 1, got 0"):
        storage.open("ns", "json", buffer_size=0)
    with pytest.raises(ValueError, match="a window"):
        storage.open("ns", "json", "w", start=1)


@pytest.mark.parametrize("part", ["../x", "a/../b", "/a", "a//b", ".", "a\0"])
def test_hostile_names(storage: KaraStorage, part: str) -> None:
    for names in ((part, "k", "1"), ("ns", part, "1"), ("ns", "k", part)):
        with pytest.raises(ValueError):
            storage.open(*names[:2], "w", names[2])


# -- serializers -----------------------------------------------------------------------------------


class Upper(Serializer):
    """Wants bytes, as serializers of users do."""

    def serialize(self, x: str) -> bytes:
        return x.upper().encode()

    def deserialize(self, x: bytes) -> str:
        return x.decode().lower()


@pytest.mark.parametrize(
    ("serializer", "rows"),
    [
        (NoSerializer(), [b"", b"\0\xff"]),
        (MsgpackSerializer(), [{"a": b"\0", 1: [2]}, None]),
        (PickleSerializer(), [{1, 2}, print, (1, 2)]),
        (Upper(), ["abc", ""]),
    ],
)
def test_serializers(tmp_path: Path, serializer: Serializer, rows: list[Any]) -> None:
    storage = KaraStorage(f"file://{tmp_path}")
    write(storage, "k", rows, serialization=serializer)
    with storage.open("ns", "k", serialization=serializer) as dataset:
        assert list(dataset) == [dataset[i] for i in range(len(rows))] == rows == dataset[:]
        assert [dataset.read() for _ in rows] == rows
        copy = pickle.loads(pickle.dumps(dataset))
        assert list(copy) == rows


def test_raw_takes_bytes_only(tmp_path: Path) -> None:
    with KaraStorage(f"file://{tmp_path}").open("n", "k", "w", "1", serialization=NoSerializer()) as dataset:
        for row in ("x", bytearray(b"x"), memoryview(b"x"), 1):
            with pytest.raises(TypeError, match="Serializer is required"):
                dataset.write(row)


def test_a_row_that_is_no_json_is_named(tmp_path: Path) -> None:
    storage = KaraStorage(f"file://{tmp_path}")
    write(storage, "k", [b"1", b"{", b"3"], serialization=NoSerializer())
    with storage.open("ns", "k") as dataset:
        assert dataset[0] == 1
        for use in (lambda: dataset[1], lambda: list(dataset), lambda: dataset.read_batch([2, 1])):
            with pytest.raises(FormatError, match="row 1 cannot be read"):
                use()


def test_rows_of_lenient_writers_among_others(tmp_path: Path) -> None:
    storage = KaraStorage(f"file://{tmp_path}")
    rows = [b"1", b"Infinity", b"-Infinity", b"4", b"Infinity"]
    wanted = [1, math.inf, -math.inf, 4, math.inf]
    write(storage, "k", rows, serialization=NoSerializer())
    with storage.open("ns", "k") as dataset:
        for found in (
            list(dataset),
            dataset[:],
            [dataset[i] for i in range(5)],
            [dataset.read() for _ in rows],
        ):
            assert found == wanted


# -- threads and processes -------------------------------------------------------------------------


def test_each_row_goes_to_one_thread(storage: KaraStorage) -> None:
    with storage.open("ns", "json", buffer_size=500) as dataset:
        found: list[Any] = []
        barrier = threading.Barrier(4)

        def work() -> None:
            barrier.wait(10)
            found.extend(itertools.takewhile(lambda row: row is not None, iter(dataset.read, 0)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(row["id"] for row in found) == list(range(len(ROWS)))


def _rows_in_child(dataset: RowDataset, numbers: list[int]) -> tuple[int, Any, list[Any]]:
    return len(dataset), dataset.read(), dataset.read_batch(numbers)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_in_other_processes(storage: KaraStorage, method: str) -> None:
    """Without a pipe to the parent: the data set travels as its arguments."""
    with storage.open("ns", "json") as dataset:
        part = dataset.slice(100)
        assert part.read() == ROWS[100]
        with multiprocessing.get_context(method).Pool(2) as pool:
            jobs = [pool.apply_async(_rows_in_child, (part, [3, -1])) for _ in range(4)]
            for job in jobs:
                assert job.get(60) == (600, ROWS[100], [ROWS[103], ROWS[-1]])
            pool.close()
            pool.join()


def test_a_copy_sees_the_rows_of_its_original(tmp_path: Path) -> None:
    storage = KaraStorage(f"file://{tmp_path}")
    write(storage, "k", [1, 2])
    dataset = storage.open("ns", "k")
    carried = pickle.dumps(dataset)
    with storage.open("ns", "k", "w") as writer:
        writer.write(3)
        with pytest.raises(TypeError, match="stays in its process"):
            pickle.dumps(writer)
    with storage.open("ns", "k", "w", "2") as writer:
        writer.write(4)
    assert list(pickle.loads(carried)) == list(dataset) == [1, 2]
    assert list(storage.open("ns", "k", version=1)) == [1, 2, 3]
    assert list(storage.open("ns", "k")) == [4]


def test_opening_reads_no_rows_and_warns_of_nothing(storage: KaraStorage) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with storage.open("ns", "json") as dataset:
            assert "700 rows" in repr(dataset)
