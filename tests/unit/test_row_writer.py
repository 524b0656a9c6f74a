"""Writing rows: the format, what is durable when, one writer at a time, and what a crash leaves."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import shutil
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from xxhash import xxh3_64_intdigest

from kara_cache import KaraStorage
from kara_cache.errors import FormatError
from kara_cache.serialization import NoSerializer
from kara_cache.storage.rows.row_check import RowCheck
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_cache.storage.rows.segment_files import SegmentFiles
from kara_cache.storage.rows.torn_tail import Tails, whole_rows

RAW = {"serialization": NoSerializer()}


@pytest.fixture
def storage(tmp_path: Path) -> KaraStorage:
    return KaraStorage(f"file://{tmp_path}")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "row" / "ns" / "k" / "1"


def write(storage: KaraStorage, rows: Iterable[bytes], **options: Any) -> None:
    with storage.open("ns", "k", "w", "1", **RAW, **options) as dataset:
        for row in rows:
            dataset.write(row)


def read(storage: KaraStorage) -> list[bytes]:
    with storage.open("ns", "k", **RAW) as dataset:
        return list(dataset)


def stream(files: Path, name: str) -> bytes:
    count = len(list((files / name).iterdir())) if (files / name).exists() else 0
    return b"".join((files / name / f"{i}.blk").read_bytes() for i in range(count))


# -- the format ------------------------------------------------------------------------------------


def test_bytes_on_disk(storage: KaraStorage, files: Path) -> None:
    write(storage, [b"abc", b"", b"de"])
    assert stream(files, "data") == b"abcde"
    assert stream(files, "index") == struct.pack("<3Q", 3, 3, 5)
    sums = [xxh3_64_intdigest(row) for row in (b"abc", b"", b"de")]
    assert stream(files, "sums") == b"KARASUMS" + struct.pack("<II3Q", 1, 8, *sums)
    assert (files.parent / "meta.json").read_bytes() == b'{"latest": "1", "versions": ["1"], "api": 2}'


@given(
    batches=st.lists(st.lists(st.binary(max_size=40), max_size=20), max_size=5),
    sizes=st.lists(st.integers(1, 60), min_size=5, max_size=5),
)
def test_streams_do_not_depend_on_segments(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], sizes: list[int]
) -> None:
    """Also when each writer has another idea of how long a segment is."""
    root = tmp_path_factory.mktemp("segments")
    storage, files = KaraStorage(f"file://{root}"), root / "row" / "ns" / "k" / "1"
    rows = list(itertools.chain.from_iterable(batches))
    for batch, size in zip(batches, sizes, strict=False):
        write(storage, batch, max_file_size=size)
    if not batches:
        return
    ends = list(itertools.accumulate(map(len, rows)))
    assert stream(files, "data") == b"".join(rows)
    assert stream(files, "index") == struct.pack(f"<{len(rows)}Q", *ends)
    assert read(storage) == rows
    with storage.open("ns", "k", **RAW) as dataset:
        assert dataset.verify() == RowCheck(len(rows), len(rows), ())


def test_segments_as_the_published_package_cuts_them(tmp_path: Path) -> None:
    segments = SegmentFiles(str(tmp_path), 4)
    segments.append(b"abcdef")
    assert sizes(tmp_path) == [4, 2]
    segments.append(b"gh")
    assert sizes(tmp_path) == [4, 4, 0]
    segments.close()
    shorter = SegmentFiles(str(tmp_path), 3)
    shorter.append(b"i")
    shorter.close()
    assert sizes(tmp_path) == [4, 4, 1]
    longer = SegmentFiles(str(tmp_path), 100)
    longer.append(b"j" * 50)
    longer.close()
    SegmentFiles(str(tmp_path), 10).append(b"k")
    assert sizes(tmp_path) == [4, 4, 51, 1]


@given(
    batches=st.lists(st.lists(st.integers(0, 1500), max_size=8), max_size=5),
    limit=st.integers(1, 9000),
    most=st.integers(1, 3),
    short=st.integers(0, 2),
)
def test_several_pieces_at_once(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]], limit: int, most: int, short: int
) -> None:
    """Also where the kernel takes less than it was given."""

    def writev(file: int, pieces: list[bytes]) -> int:
        return os.write(file, b"".join(pieces)[: sum(map(len, pieces)) - short or None])

    directory = tmp_path_factory.mktemp("pieces")
    segments = SegmentFiles(str(directory), limit)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kara_cache.storage.rows.segment_files._GATHERED", most)
        patched.setattr(os, "writev", writev)
        for lengths in batches:
            segments.append_all([bytes([length % 251]) * length for length in lengths])
    segments.close()
    whole = b"".join(bytes([length % 251]) * length for lengths in batches for length in lengths)
    found = sizes(directory)
    assert b"".join((directory / f"{i}.blk").read_bytes() for i in range(len(found))) == whole
    assert segments.size == len(whole)
    assert all(size <= limit for size in found)
    assert all(size == limit for size in found[:-1])


def test_an_error_on_the_way_ends_the_writer(storage: KaraStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of calls that had returned before it are not promised, until `flush` returns."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with storage.open("ns", "k", "w", "1", **RAW) as dataset:
        dataset.write(b"first")
        dataset.flush()
    dataset = storage.open("ns", "k", "w", "1", **RAW)
    monkeypatch.setattr(os, "writev", full)
    dataset.write(b"collected")
    with pytest.raises(OSError, match="no space"):
        dataset.write(bytes(2 << 20))
    with pytest.raises(RuntimeError, match="writing failed"):
        dataset.write(b"more")
    dataset.close()
    monkeypatch.undo()
    assert read(storage) == [b"first"]


def sizes(directory: Path) -> list[int]:
    return [(directory / f"{i}.blk").stat().st_size for i in range(len(list(directory.iterdir())))]


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=30), max_size=6),
    limit=st.integers(1, 12),
    data=st.data(),
)
def test_cutting_segments(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], limit: int, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    segments = SegmentFiles(str(directory), limit)
    for piece in pieces:
        segments.append(piece)
    whole = b"".join(pieces)
    size = data.draw(st.integers(0, len(whole)))
    segments.cut(size)
    segments.append(b"xyz")
    segments.sync()
    segments.close()
    found = [(directory / f"{i}.blk").read_bytes() for i in range(len(list(directory.iterdir())))]
    assert b"".join(found) == whole[:size] + b"xyz"
    assert segments.size == size + 3


def test_a_gap_is_not_closed(storage: KaraStorage, files: Path) -> None:
    write(storage, [b"abcd"] * 10, max_file_size=8)
    (files / "data" / "2.blk").unlink()
    with pytest.raises(FormatError, match=r"data: 2\.blk is missing, and 5\.blk is there"):
        write(storage, [b"x"])
    with pytest.raises(FormatError, match="missing or was cut"):
        read(storage)


# -- when what is there ----------------------------------------------------------------------------


def test_rows_are_there_after_flush_and_not_before(storage: KaraStorage) -> None:
    with storage.open("ns", "k", "w", "1", **RAW) as dataset:
        dataset.write(b"a")
        with pytest.raises(ValueError, match="not exists"):
            read(storage)
        dataset.flush()
        assert read(storage) == [b"a"]
        dataset.write(b"b")
        assert read(storage) == [b"a"]
        assert len(dataset) == 1
        dataset.flush()
        assert (len(dataset), dataset[1], dataset.read()) == (2, b"b", b"a")


def test_flush_syncs_data_then_index_then_sums(storage: KaraStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def seen(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(file: int, *args: Any) -> Any:
            where = Path(os.readlink(f"/proc/self/fd/{file}"))
            if where.suffix == ".blk":
                steps.append(f"{name} {where.parent.name}")
            return call(file, *args)

        return instead

    with storage.open("ns", "k", "w", "1", **RAW) as dataset:
        dataset.write(b"a")
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", seen("write", os.write))
            patched.setattr(os, "fsync", seen("fsync", os.fsync))
            dataset.flush()
    streams = ["data", "index", "sums"]
    unique = [step for step, _ in itertools.groupby(steps)]
    assert unique == [f"{what} {name}" for name in streams for what in ("write", "fsync")]


def test_latest_moves_with_the_first_rows_and_not_with_opening(storage: KaraStorage) -> None:
    write(storage, [b"a"])
    with storage.open("ns", "k", "w", "2", **RAW) as dataset:
        dataset.write(b"b")
        assert storage.get_row_meta("ns", "k")["latest"] == "1"
        dataset.flush()
        assert storage.get_row_meta("ns", "k")["latest"] == "2"
    with storage.open("ns", "k", "w", "1", **RAW):
        pass
    assert storage.get_row_meta("ns", "k") == {"latest": "2", "versions": ["1", "2"], "api": 2}
    write(storage, [b"c"])
    assert storage.get_row_meta("ns", "k")["latest"] == "1"


def test_an_empty_version(storage: KaraStorage, files: Path) -> None:
    write(storage, [])
    assert read(storage) == []
    assert sizes(files / "index") == sizes(files / "data") == [0]


def test_many_rows_are_flushed_on_the_way(storage: KaraStorage) -> None:
    """So that a crash costs a bounded number of them."""
    with storage.open("ns", "k", "w", "1", **RAW, max_file_size=3 << 20) as dataset:
        for _ in range(5):
            dataset.write(bytes(1 << 20))
            assert len(dataset) == 0
        assert len(read(storage)) == 3
        dataset.flush()
        assert len(dataset) == 5
        dataset.flush()


def test_after_an_error_nothing_is_added(storage: KaraStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    dataset = storage.open("ns", "k", "w", "1", **RAW)
    dataset.write(b"a")
    dataset.flush()
    dataset.write(b"b")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            dataset.flush()
    with pytest.raises(RuntimeError, match="rows after row 1 are not stored"):
        dataset.flush()
    dataset.close()
    write(storage, [b"c"])
    assert read(storage) == [b"a", b"c"]


def forget(held: list[RowDataset]) -> None:
    held.clear()
    gc.collect()  # an exception on the way to it may hold its frames


def test_forgotten_writers_write_and_say_so(storage: KaraStorage) -> None:
    held = [storage.open("ns", "k", "w", "1", **RAW)]
    held[0].write(b"a")
    with pytest.warns(ResourceWarning, match="unclosed <RowDataset"):
        forget(held)
    assert read(storage) == [b"a"]


def test_an_exception_keeps_the_rows_before_it(storage: KaraStorage) -> None:
    with pytest.raises(ZeroDivisionError):
        write(storage, (bytes([97 // n]) for n in (1, 0)))
    assert read(storage) == [b"a"]


# -- one writer ------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_is_first(storage: KaraStorage) -> None:
    with storage.open("ns", "k", "w", "1", **RAW) as dataset:
        with pytest.raises(BlockingIOError, match=rf"already open for writing, by process {os.getpid()} on"):
            storage.open("ns", "k", "w", "1")
        with storage.open("ns", "k", "w", "2", **RAW) as other:
            other.write(b"x")
        dataset.write(b"a")
    write(storage, [b"b"])
    assert read(storage) == [b"a", b"b"]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_writes_nothing_and_holds_nothing(storage: KaraStorage) -> None:
    dataset = storage.open("ns", "k", "w", "1", **RAW)
    dataset.write(b"parent")
    started, go_on = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            try:
                dataset.write(b"child")
            except RuntimeError as exc:
                status = 0 if "is being written by process" in str(exc) else 2
            dataset.close()
        finally:
            os.write(started[1], b"x")
            os.read(go_on[0], 1)
            os._exit(status)
    assert os.read(started[0], 1) == b"x"
    dataset.close()
    write(storage, [b"next"])  # while the child lives
    os.write(go_on[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for end in (*started, *go_on):
        os.close(end)
    assert read(storage) == [b"parent", b"next"]


def test_threads_share_a_writer(storage: KaraStorage) -> None:
    with storage.open("ns", "k", "w", "1", **RAW) as dataset:
        barrier = threading.Barrier(4)

        def work(number: int) -> None:
            barrier.wait(10)
            for i in range(200):
                dataset.write(b"%d-%d" % (number, i))
                if not i % 50:
                    dataset.flush()

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    found = read(storage)
    assert len(found) == 800
    for number in range(4):
        mine = [row for row in found if row.startswith(b"%d-" % number)]
        assert mine == [b"%d-%d" % (number, i) for i in range(200)]


# -- torn tails ------------------------------------------------------------------------------------


def damage(files: Path, name: str, change: Callable[[bytearray], None]) -> None:
    path = files / name / "0.blk"
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def add(more: bytes) -> Callable[[bytearray], None]:
    return lambda content: content.extend(more)


ROWS = [b"one", b"", b"three"]
TORN: dict[str, tuple[str, bytes, str]] = {
    "data without index": ("data", b"torn", "cut off 4 bytes of data without index entries after row 3"),
    "half an index entry": ("index", b"\x09\0\0", "cut off 3 bytes of index without data after row 3"),
    "index beyond the data": ("index", struct.pack("<2Q", 20, 30), "16 bytes of index"),
    "zeros after the index": ("index", bytes(24), "24 bytes of index"),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_tail_is_cut_with_a_warning(storage: KaraStorage, files: Path, case: str) -> None:
    write(storage, ROWS)
    name, more, said = TORN[case]
    damage(files, name, add(more))
    with pytest.warns(RuntimeWarning, match=said):
        write(storage, [b"four"])
    assert read(storage) == [*ROWS, b"four"]
    with storage.open("ns", "k", **RAW) as dataset:
        assert dataset.verify() == RowCheck(4, 4, ())


def test_half_a_checksum_is_cut_in_silence(storage: KaraStorage, files: Path) -> None:
    """No row is lost by that."""
    write(storage, ROWS)
    damage(files, "sums", add(b"\1\2"))
    assert read(storage) == ROWS
    write(storage, [b"four"])
    with storage.open("ns", "k", **RAW) as dataset:
        assert dataset.verify() == RowCheck(4, 4, ())


def test_a_reader_leaves_out_what_was_never_flushed(storage: KaraStorage, files: Path) -> None:
    write(storage, ROWS)
    damage(files, "index", add(struct.pack("<2Q", 20, 30)))
    with pytest.warns(RuntimeWarning, match="2 rows after row 3 were never flushed"):
        assert read(storage) == ROWS


FLUSHED: dict[str, tuple[str, Callable[[bytearray], None], str]] = {
    "index cut": (
        "index",
        lambda content: content.__delitem__(slice(16, None)),
        "3 rows were flushed, the index has 2",
    ),
    "data cut": ("data", lambda content: content.__delitem__(slice(4, None)), "row 2 was flushed"),
    "index entry lost": (
        "index",
        lambda content: content.__setitem__(slice(16, 24), bytes(8)),
        "row 2 was flushed",
    ),
}


@pytest.mark.parametrize("case", FLUSHED)
def test_what_was_flushed_is_never_cut(storage: KaraStorage, files: Path, case: str) -> None:
    write(storage, ROWS)
    name, change, said = FLUSHED[case]
    damage(files, name, change)
    before = {path: path.read_bytes() for path in files.rglob("*.blk")}
    with pytest.raises(FormatError, match=said):
        write(storage, [b"four"])
    assert {path: path.read_bytes() for path in files.rglob("*.blk")} == before


def test_rows_of_a_program_without_checksums(storage: KaraStorage, files: Path) -> None:
    """Theirs before ours, and ours before theirs: what has no checksum is read without."""
    write(storage, ROWS)
    damage(files, "data", add(b"theirs"))
    damage(files, "index", add(struct.pack("<Q", 14)))
    assert read(storage) == [*ROWS, b"theirs"]
    write(storage, [b"five"])
    assert read(storage) == [*ROWS, b"theirs", b"five"]
    with storage.open("ns", "k", **RAW) as dataset:
        assert dataset.verify() == RowCheck(5, 4, ())
        assert dataset.read_batch(range(4, -1, -1)) == [b"five", b"theirs", *ROWS[::-1]]
    (files / "sums" / "0.blk").unlink()
    assert read(storage) == [*ROWS, b"theirs", b"five"]
    write(storage, [b"six"])
    with storage.open("ns", "k", **RAW) as dataset:
        assert dataset.verify() == RowCheck(6, 1, ())
        assert dataset[3:] == [b"theirs", b"five", b"six"]


@given(
    ends=st.lists(st.integers(1, 9), max_size=8).map(lambda lengths: list(itertools.accumulate(lengths))),
    flushed=st.integers(0, 8),
    tail=st.sampled_from([[], [0], [0, 0], [10**6], [10**6, 2 * 10**6]]),
    torn=st.integers(0, 5),
)
def test_whole_rows(ends: list[int], flushed: int, tail: list[int], torn: int) -> None:
    flushed = min(flushed, len(ends))
    if tail and tail[0] == 0 and not ends:
        return  # zeros at the start are empty rows
    words = memoryview(array("Q", [*ends, *tail]))
    size = ends[-1] if ends else 0
    found = whole_rows(words, memoryview(array("Q", [7] * flushed)), size + torn, "here")
    sums = 16 + 8 * flushed if flushed else 0
    assert found == Tails(len(ends), size, 8 * len(ends), sums)


def test_damage_in_the_middle_of_an_index_is_no_torn_tail() -> None:
    words = memoryview(array("Q", [3, 9, 4, 12]))
    with pytest.raises(FormatError, match="index is damaged at row 2: end 4 after 9"):
        whole_rows(words, memoryview(array("Q")), 12, "here")


@pytest.mark.parametrize("stream", ["data", "index", "sums"])
def test_files_that_are_gone(storage: KaraStorage, files: Path, stream: str) -> None:
    """No empty data set, and nothing is cut: they may come back from a backup."""
    write(storage, [bytes(100_000)] * 30)
    shutil.rmtree(files / "sums")  # as the published package writes it
    if stream != "sums":
        (files / stream).rename(files / "elsewhere")
    before = {path: path.read_bytes() for path in files.rglob("*.blk")}
    if stream == "sums":
        assert len(read(storage)) == 30
        return
    with pytest.raises((FormatError, FileNotFoundError), match="missing"):
        read(storage)
    with pytest.raises((FormatError, FileNotFoundError), match=r"no torn tail|its index is missing"):
        write(storage, [b"x"])
    assert {path: path.read_bytes() for path in files.rglob("*.blk")} == before


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_file_size", [1 << 20, 64])
def test_a_damaged_row_is_never_returned(storage: KaraStorage, files: Path, max_file_size: int) -> None:
    rows = [b"%03d" % i * 5 for i in range(50)]
    write(storage, rows, max_file_size=max_file_size)
    segment, at = divmod(20 * 15 + 3, max_file_size)
    path = files / "data" / f"{segment}.blk"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    uses: list[Callable[[RowDataset], Any]] = [
        lambda ds: ds[20],
        lambda ds: list(ds),
        lambda ds: ds.read_batch([1, 20]),
        lambda ds: ds.read_batch(range(50)),
        lambda ds: ds[19:22],
        lambda ds: ds.read_into(20, bytearray(15)),
        lambda ds: [ds.read() for _ in rows],
    ]
    with storage.open("ns", "k", **RAW) as dataset:
        for use in uses:
            with pytest.raises(FormatError, match="row 20 is damaged: its 15 bytes have checksum 0x"):
                use(dataset)
        assert dataset[19] == rows[19]
        check = dataset.verify()
        assert (check.rows, check.with_checksum, [number for number, _ in check.damaged]) == (50, 50, [20])
        assert not check.ok
    with storage.open("ns", "k", **RAW, verify=False) as dataset:
        assert dataset[20] != rows[20]
        assert [number for number, _ in dataset.verify().damaged] == [20]


def test_a_damaged_index_is_found_without_checksums(storage: KaraStorage, files: Path) -> None:
    write(storage, [b"abc", b"def", b"ghi"])
    damage(files, "index", lambda content: content.__setitem__(slice(8, 16), struct.pack("<Q", 1)))
    (files / "sums" / "0.blk").unlink()
    with storage.open("ns", "k", **RAW) as dataset:
        for use in (lambda: dataset[1], lambda: list(dataset), lambda: dataset.read_batch([1])):
            with pytest.raises(FormatError, match=r"row 1 is damaged: the index says bytes \[3, 1\) of 9"):
                use()
        assert [number for number, _ in dataset.verify().damaged] == [1]


def test_unknown_checksums_are_refused_and_may_be_ignored(storage: KaraStorage, files: Path) -> None:
    write(storage, ROWS)
    damage(files, "sums", lambda content: content.__setitem__(8, 2))
    with pytest.raises(FormatError, match=r"version 2.*verify=False"):
        read(storage)
    with storage.open("ns", "k", **RAW, verify=False) as dataset:
        assert list(dataset) == ROWS


def test_json_bytes_are_those_of_the_document(storage: KaraStorage, files: Path) -> None:
    row = {"b": 1, "a": "é", "n": None, "t": (1, 2.5), "f": float("nan")}
    with storage.open("ns", "k", "w", "1") as dataset:
        dataset.write(row)
    assert stream(files, "data") == '{"b":1,"a":"é","n":null,"t":[1,2.5],"f":null}'.encode()
    assert json.loads(stream(files, "data"))["a"] == "é"
    assert sys.byteorder == "little"
