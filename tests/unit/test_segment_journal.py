"""The journal of segments against a dictionary: cut anywhere, its index written while pages come and go."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.page import HEADER_BYTES, PageHeader, PageId, file_id
from kara_cache.page_record import data_at, pack, packed_bytes, record_bytes, unit_of, unpack
from kara_worker.pages.page_index import FileRecord
from kara_worker.segments.journal import Journal, Placed
from kara_worker.segments.segment import PLACE_BITS, offset_in, place_of, size_in

State = dict[tuple[bytes, int], int]

STEPS = st.lists(
    st.tuples(st.sampled_from(["placed", "placed", "gone", "stale", "begin", "write"]), st.integers(0, 7)),
    max_size=30,
)


def record(page: int, turn: int) -> Placed:
    return PageId(bytes([page % 3]) * 16, page), turn, place_of(64 * turn, 128)


def write_index(journal: Journal, state: State) -> None:
    mask = (1 << PLACE_BITS) - 1
    pages = ((PageId(*key), entry >> PLACE_BITS, entry & mask) for key, entry in list(state.items()))
    record = FileRecord(b"f" * 16)
    record.path, record.group = "/m/数据", "abcdefgh"
    journal.write_index(pages, [record], [(3, 1, 2)])


def play(journal: Journal, steps: list[tuple[str, int]], each: Callable[[], None] | None = None) -> State:
    """What is there after all steps. An index is begun and written at any time, not at once."""
    state: State = {}
    for turn, (verb, page) in enumerate(steps):
        placed = record(page, turn)
        key, entry = (placed[0][0], placed[0][1]), placed[1] << PLACE_BITS | placed[2]
        if verb == "placed":
            journal.placed([placed])
            state[key] = entry
        elif verb == "gone" and key in state:
            known = state.pop(key)
            journal.gone([(placed[0], known >> PLACE_BITS, known & ((1 << PLACE_BITS) - 1))])
        elif verb == "stale":  # of a place where the page was before
            journal.gone([(placed[0], 1000 + turn, placed[2])])
        elif verb == "begin":
            journal.begin_index()
        elif verb == "write" and any(step[0] == "begin" for step in steps[:turn]):
            write_index(journal, state)
        if each is not None:
            each()
    return state


@given(steps=STEPS)
def test_what_was_said_is_known_afterwards(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        state = play(journal, steps)
        journal.close()
        for _ in range(2):
            again = Journal(folder)
            assert again.pages == state
            again.close()


@given(steps=STEPS, cut=st.integers(0, 5000), garbage=st.binary(max_size=40))
def test_a_torn_end_is_cut_off_and_written_over(
    steps: list[tuple[str, int]], cut: int, garbage: bytes
) -> None:
    steps = [step for step in steps if step[0] in ("placed", "gone")]
    with tempfile.TemporaryDirectory() as folder:
        journal, file = Journal(folder), Path(folder) / "journal.0"
        states: list[tuple[int, State]] = [(0, {})]
        state: State = {}

        def keep() -> None:
            states.append((file.stat().st_size, dict(state)))

        for turn, step in enumerate(steps):
            state = play_one(journal, state, turn, step)
            keep()
        journal.close()
        size = min(cut, file.stat().st_size)
        os.truncate(file, size)
        with file.open("ab") as torn:
            torn.write(garbage)
        expected = [known for end, known in states if end <= size][-1]
        again = Journal(folder)
        assert again.pages == expected
        again.placed([record(7, 999)])
        again.close()
        assert Journal(folder).pages == {**expected, (b"\x01" * 16, 7): 999 << PLACE_BITS | record(7, 999)[2]}


def play_one(journal: Journal, state: State, turn: int, step: tuple[str, int]) -> State:
    placed = record(step[1], turn)
    key = placed[0][0], placed[0][1]
    if step[0] == "placed":
        journal.placed([placed])
        return {**state, key: placed[1] << PLACE_BITS | placed[2]}
    known = state.get(key)
    if known is not None:
        journal.gone([(placed[0], known >> PLACE_BITS, known & ((1 << PLACE_BITS) - 1))])
    return {other: entry for other, entry in state.items() if other != key}


def test_changes_while_the_index_is_written_win(tmp_path: Path) -> None:
    """Pages that come, go and move between the moment the journal was begun and the end of the index."""
    journal = Journal(str(tmp_path))
    journal.placed([record(page, 1) for page in range(5)])
    journal.begin_index()
    listed = [record(0, 1), record(1, 1), record(2, 7), record(3, 1)]  # 4 went before it was looked at
    journal.gone([record(4, 1)])
    journal.placed([record(2, 7)])  # moved
    journal.gone([record(1, 1)])  # listed before it went
    journal.write_index(iter(listed), [], [])
    journal.close()
    pages = Journal(str(tmp_path)).pages
    assert {index: entry >> PLACE_BITS for (_, index), entry in pages.items()} == {0: 1, 2: 7, 3: 1}


@pytest.mark.parametrize("left", ["index.2.new", "journal.1", "index.0", "journal.0"])
def test_what_a_crash_left_of_an_index_is_removed(tmp_path: Path, left: str) -> None:
    journal = Journal(str(tmp_path))
    state = play(
        journal, [("placed", 1), ("begin", 0), ("write", 0), ("begin", 0), ("write", 0), ("placed", 2)]
    )
    journal.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.2", "journal.2"]
    shutil.copy(tmp_path / "journal.2", tmp_path / left)
    again = Journal(str(tmp_path))
    assert again.pages == state
    assert {key: (file.path, file.group) for key, file in again.files.items()} == {
        b"f" * 16: ("/m/数据", "abcdefgh")
    }
    assert again.ages == {3: (1, 2)}
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.2", "journal.2"]


def test_a_short_write_is_continued_and_a_failed_one_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, real = Journal(str(tmp_path)), os.pwrite
    counts = iter([10, 1000, 10, 0])

    def short(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data[: next(counts)], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", short)
        journal.placed([record(1, 1)])
        with pytest.raises(OSError, match="could not be written whole"):
            journal.placed([record(2, 2)])
    journal.gone([record(5, 5)])
    journal.placed([record(3, 3)])
    journal.close()
    assert {index for _, index in Journal(str(tmp_path)).pages} == {1, 3}


HEADERS = st.builds(
    lambda length, index, path: PageHeader.of(
        PageId(file_id(path, "v", 1), index), bytes(length), page_bytes=1 << 20, created_ns=5, path=path
    ),
    st.one_of(st.integers(1, 70_000), st.sampled_from([(64 << 10) - 1, 64 << 10, 1 << 20])),
    st.integers(0, 2**40),
    st.text(max_size=60).map(lambda text: f"/m/{text}"),
)


@given(header=HEADERS, rest=st.binary(max_size=100))
def test_a_header_without_its_padding_is_the_same_header(header: PageHeader, rest: bytes) -> None:
    raw = pack(header)
    assert unpack(raw + rest) == header
    packed = packed_bytes(header)
    assert len(raw) == data_at(packed, header.length)
    size = record_bytes(packed, header.length)
    assert len(raw) + header.length <= size < len(raw) + header.length + unit_of(header.length)
    assert size % 64 == 0
    place = place_of(64 * 4321, size)
    assert (offset_in(place), size_in(place)) == (64 * 4321, size)


@given(header=HEADERS, at=st.integers(0, HEADER_BYTES), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_header_is_found(header: PageHeader, at: int, bit: int) -> None:
    raw = bytearray(pack(header))
    at %= packed_bytes(header)
    raw[at] ^= 1 << bit
    with pytest.raises(FormatError):
        unpack(raw)
    for size in range(0, packed_bytes(header), 7):
        with pytest.raises(FormatError):
            unpack(pack(header)[:size])


def test_a_picture_of_20_kib_takes_one_percent_more() -> None:
    path = "/imagenet/train/n01440764/n01440764_10026.JPEG"
    page = PageId(file_id(path, "v", 20 << 10), 0)
    header = PageHeader.of(page, bytes(20 << 10), page_bytes=1 << 20, created_ns=1, path=path)
    assert record_bytes(packed_bytes(header), header.length) <= 1.01 * (20 << 10)


def test_a_path_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    header = PageHeader.of(
        PageId(b"i" * 16, 0), b"x", page_bytes=1 << 20, created_ns=1, path="/m/" + "é" * 3000
    )
    assert unpack(pack(header)).path == ""
    assert len(pack(header)) == data_at(packed_bytes(header), 1)
    longest = PageHeader.of(PageId(b"i" * 16, 0), b"x", page_bytes=1 << 20, created_ns=1, path="p" * 4008)
    assert unpack(pack(longest)) == longest
