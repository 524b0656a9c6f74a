"""Streams over segments in a store: the bytes of one version, however they are asked for."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import StaleVersion, UnderStoreError
from kara_cache.storage.rows.segments import find_segments
from kara_cache.storage.rows.spans import cut, cut_all, runs_of
from kara_cache.storage.rows.stored_bytes import StoredBytes
from kara_cache.ufs import UnderStore, open_store
from kara_cache.ufs.base import FileInfo
from kara_cache.ufs.memory import MemoryStore

DIRECTORY = "row/ns/key/v/data"


@dataclass
class Held:
    """A place in memory."""

    store: Any


class OnDisk:
    """A place that pickles as its path and opens the store in each process that asks for it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._store: UnderStore | None = None

    @property
    def store(self) -> UnderStore:
        if self._store is None:
            self._store = open_store(f"file://{self.root}", {})
        return self._store

    def __reduce__(self) -> tuple[type[OnDisk], tuple[str]]:
        return OnDisk, (self.root,)


class Reluctant:
    """Writes down what it is asked, and lists only where told."""

    def __init__(self, *, lists: bool) -> None:
        self.inner = MemoryStore("reluctant")
        self.url = self.inner.url
        self.lists = lists
        self.asked: list[str] = []

    def write(self, path: str, data: bytes) -> FileInfo:
        return self.inner.write(path, data)

    def info(self, path: str) -> FileInfo:
        self.asked.append(f"info {path}")
        return self.inner.info(path)

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        self.asked.append(f"list {path}")
        if not self.lists:
            raise io.UnsupportedOperation("no listings here")
        return self.inner.list(path, recursive=recursive)

    def read_into(self, path: str, start: int, buffer: memoryview, *, version: str | None = None) -> int:
        self.asked.append(f"read {path} {start} {len(buffer)}")
        return self.inner.read_into(path, start, buffer, version=version)


def stored(parts: list[bytes], store: Any = None) -> Held:
    place = Held(store or MemoryStore("rows"))
    for number, part in enumerate(parts):
        place.store.write(f"{DIRECTORY}/{number}.blk", part)
    return place


def numbered(count: int) -> bytes:
    """Bytes of which no two windows of 16 are equal, to speak of."""
    return b"".join(f"{at:015d}.".encode() for at in range(0, count + 16, 16))[:count]


parts_st = st.lists(st.binary(max_size=40), max_size=6)


@given(parts_st, st.lists(st.tuples(st.integers(0, 240), st.integers(0, 60)), max_size=30))
def test_any_span_of_any_segments_is_what_was_stored(
    parts: list[bytes], wanted: list[tuple[int, int]]
) -> None:
    whole = b"".join(parts)
    stream = StoredBytes(stored(parts), DIRECTORY)
    assert stream.size == len(whole)
    starts = [min(start, len(whole)) for start, _ in wanted]
    stops = [min(start + count, len(whole)) for start, (_, count) in zip(starts, wanted, strict=True)]
    expected = [whole[a:b] for a, b in zip(starts, stops, strict=True)]
    assert [bytes(view) for view in stream.read_spans(starts, stops)] == expected
    assert [bytes(stream.read(a, b)) for a, b in zip(starts, stops, strict=True)] == expected
    for a, b, want in zip(starts, stops, expected, strict=True):
        buffer = bytearray(b - a)
        assert stream.read_into(a, buffer) == b - a
        assert bytes(buffer) == want
    stream.close()


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 300)), max_size=40),
    st.integers(0, 200),
    st.integers(1, 500),
)
def test_runs_cover_every_span_once_and_stay_within_their_limits(
    wanted: list[tuple[int, int]], gap: int, limit: int
) -> None:
    data = numbered(3400)
    starts, stops = [a for a, _ in wanted], [a + n for a, n in wanted]
    runs, places, lengths = runs_of(starts, stops, gap, limit)
    memory = b"".join(data[first:last] for first, last in runs)
    assert [memory[p : p + n] for p, n in zip(places, lengths, strict=True)] == [
        data[a:b] for a, b in zip(starts, stops, strict=True)
    ]
    longest = max((n for _, n in wanted), default=0)
    assert all(last - first <= max(limit, longest) for first, last in runs)
    assert sum(last - first for first, last in runs) <= sum(n + gap for _, n in wanted)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_a_cut_names_each_byte_once_and_no_empty_segment(sizes: list[int], data: st.DataObject) -> None:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    start = data.draw(st.integers(0, ends[-1]))
    stop = data.draw(st.integers(start, ends[-1]))
    positions = [(s, at) for s, size in enumerate(sizes) for at in range(size)]
    named = [(s, at + i) for s, at, count in cut(start, stop, ends) for i in range(count)]
    assert named == positions[start:stop]
    middle = data.draw(st.integers(start, stop))
    runs = [run for run in ((start, middle), (middle, stop)) if run[0] < run[1]]
    assert [(s, at + i) for s, at, count in cut_all(runs, ends) for i in range(count)] == positions[
        start:stop
    ]


def test_neighbours_are_one_request_and_far_ones_two() -> None:
    store = Reluctant(lists=True)
    stream = StoredBytes(stored([numbered(2 << 20)], store), DIRECTORY)
    store.asked.clear()
    stream.read_spans([5000, 0, 100, 1 << 20], [5100, 100, 200, (1 << 20) + 1])
    reads = sorted(store.asked)
    assert reads == [f"read {DIRECTORY}/0.blk 0 5100", f"read {DIRECTORY}/0.blk {1 << 20} 1"]


@pytest.mark.parametrize("lists", [True, False])
def test_segments_are_found_with_few_requests(lists: bool) -> None:
    store = Reluctant(lists=lists)
    place = stored([b"ab", b"", b"cde"], store)
    store.write(f"{DIRECTORY}/4.blk", b"after a gap")
    store.write(f"{DIRECTORY}/notes.txt", b"no segment")
    stream = StoredBytes(place, DIRECTORY)
    assert bytes(stream.read(0, 99)) == b"abcde"
    asked = [line for line in store.asked if not line.startswith("read")]
    assert len(asked) == (1 if lists else 1 + 4)
    assert find_segments(store, "row/ns/key/none/data") == ()


def test_a_replaced_segment_is_an_error_and_never_a_mixture() -> None:
    place = stored([b"first" * 100, b"second" * 100])
    stream = StoredBytes(place, DIRECTORY)
    place.store.write(f"{DIRECTORY}/1.blk", b"SECOND" * 100)
    assert bytes(stream.read(0, 5)) == b"first"
    with pytest.raises(StaleVersion):
        stream.read(500, 506)
    with pytest.raises(StaleVersion):
        stream.read_spans([0, 500], [5, 506])
    place.store.delete(f"{DIRECTORY}/1.blk")
    with pytest.raises(FileNotFoundError):
        stream.read_spans([0, 500], [5, 506])


def test_a_segment_that_shrank_where_versions_are_unknown_is_an_error() -> None:
    place = stored([b"0123456789"])
    known = [FileInfo(f"{DIRECTORY}/0.blk", 10, "")]
    stream = StoredBytes(place, DIRECTORY, segments=known)
    place.store.write(f"{DIRECTORY}/0.blk", b"012")
    with pytest.raises(UnderStoreError, match="had 10 bytes"):
        stream.read_spans([0], [10])


def test_what_is_no_part_of_the_stream_is_refused() -> None:
    stream = StoredBytes(stored([b"0123456789"]), DIRECTORY)
    assert bytes(stream.read(8, 20)) == b"89"
    assert bytes(stream.read(10, 20)) == b""
    with pytest.raises(ValueError, match="10 bytes"):
        stream.read_spans([0, 8], [1, 11])
    with pytest.raises(ValueError, match="ends before"):
        stream.read_spans([3], [2])
    with pytest.raises(ValueError, match="no part"):
        stream.read(-1, 3)
    stream.close()
    stream.close()
    for read in (lambda: stream.read(0, 1), lambda: stream.read_spans([0], [1])):
        with pytest.raises(ValueError, match="closed"):
            read()


def test_views_are_read_only_so_that_no_row_changes_another() -> None:
    stream = StoredBytes(stored([b"0123456789"]), DIRECTORY)
    first, second = stream.read_spans([0, 2], [4, 6])
    assert first.readonly
    assert second.readonly
    assert memoryview(stream.read(0, 4)).readonly


def test_reading_in_sequence_fetches_each_byte_once_in_large_pieces() -> None:
    store = Reluctant(lists=True)
    data = numbered(3 << 20)
    stream = StoredBytes(stored([data[: 2 << 20], data[2 << 20 :]], store), DIRECTORY)
    store.asked.clear()
    got = b"".join(bytes(stream.read(at, at + 3000)) for at in range(0, len(data), 3000))
    stream.close()
    assert got == data
    fetched = sum(int(line.split()[-1]) for line in store.asked)
    assert fetched == len(data)
    assert len(store.asked) < 20


def test_a_pickle_brings_the_versions_along_and_asks_the_store_nothing(tmp_path: Path) -> None:
    place = OnDisk(str(tmp_path))
    place.store.write(f"{DIRECTORY}/0.blk", b"0123456789")
    stream = pickle.loads(pickle.dumps(StoredBytes(place, DIRECTORY)))
    assert bytes(stream.read(2, 4)) == b"23"
    place.store.write(f"{DIRECTORY}/1.blk", b"later")
    again = pickle.loads(pickle.dumps(stream))
    assert again.segments == stream.segments
    assert again.size == 10
    place.store.write(f"{DIRECTORY}/0.blk", b"replaced, and longer")
    with pytest.raises(StaleVersion):
        again.read(0, 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_read_what_the_parent_opened(tmp_path: Path, method: str) -> None:
    place = OnDisk(str(tmp_path))
    data = numbered(3 << 20)
    place.store.write(f"{DIRECTORY}/0.blk", data[: 1 << 20])
    place.store.write(f"{DIRECTORY}/1.blk", data[1 << 20 :])
    stream = StoredBytes(place, DIRECTORY)
    for at in range(0, 2 << 20, 1 << 16):  # readers, threads and read-ahead exist before the fork
        stream.read(at, at + (1 << 16))
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_read_in_child, args=(stream, theirs))
    child.start()
    try:
        assert ours.poll(60), "the child said nothing"
        assert ours.recv() == [data[i : i + 100] for i in range(0, len(data), 1 << 16)] + [data]
    finally:
        child.join(20)
        child.kill()
    stream.close()


def _read_in_child(stream: StoredBytes, answer) -> None:  # type: ignore[no-untyped-def]
    starts = list(range(0, stream.size, 1 << 16))
    rows = [bytes(view) for view in stream.read_spans(starts, [at + 100 for at in starts])]
    whole = b"".join(bytes(stream.read(at, at + 4096)) for at in range(0, stream.size, 4096))
    answer.send([*rows, whole])
    stream.close()


def test_threads_share_a_stream() -> None:
    data = numbered(1 << 20)
    stream = StoredBytes(stored([data[i : i + 100_000] for i in range(0, len(data), 100_000)]), DIRECTORY)
    wrong: list[object] = []

    def read(offset: int) -> None:
        try:
            for at in range(offset, len(data) - 300, 7919):
                if bytes(stream.read(at, at + 300)) != data[at : at + 300]:
                    wrong.append(at)
                spans = [at, max(0, at - 500_000)]
                for start, view in zip(spans, stream.read_spans(spans, [a + 99 for a in spans]), strict=True):
                    if bytes(view) != data[start : start + 99]:
                        wrong.append(start)
        except Exception as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stream.close()
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_numpy_positions_are_taken_as_they_are() -> None:
    numpy = pytest.importorskip("numpy")
    stream = StoredBytes(stored([numbered(1000)]), DIRECTORY)
    starts = numpy.array([900, 0, 16], dtype=numpy.uint64)
    views = stream.read_spans(starts, starts + numpy.uint64(16))
    assert [bytes(view) for view in views] == [numbered(1000)[s : s + 16] for s in (900, 0, 16)]
