"""Ranges of pages that are open, against slices of the file."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kara_cache.checksum import checksum
from kara_cache.mount import Mount
from kara_cache.page import HEADER_BYTES, PageHeader, PageId, file_id
from kara_cache.wire import FRAME_DATA, FRAME_JOINED, RANGE_FRAME, FileRange
from kara_worker.data_port.range_hits import AskedFile, RangeHits
from kara_worker.page_cache import FileRef
from kara_worker.pages.page_store import StoredPage

PAGE = 64 << 10
DATA = os.urandom(5 * PAGE + 12_345)
MISSING = 3  # a page that is not open
REF = FileRef("/m/f", Mount("m", "file:///f"), "f", "v", len(DATA), file_id("/m/f", "v", len(DATA)))
ROOM = 128 << 10


class OpenOnes:
    """As much of a page store as is needed."""

    page_bytes = PAGE

    def __init__(self, block_bytes: int) -> None:
        self.files = []
        self.pages: dict[PageId, StoredPage] = {}
        for index, at in enumerate(range(0, len(DATA), PAGE)):
            part = DATA[at : at + PAGE]
            page = PageId(REF.file_id, index)
            header = PageHeader.of(page, part, page_bytes=PAGE, created_ns=1, block_bytes=block_bytes)
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the fixture
            file.write(header.encode() + part)
            file.flush()
            self.files.append(file)
            if index != MISSING:
                self.pages[page] = StoredPage(file.fileno(), HEADER_BYTES, header)

    def peek(self, page: PageId) -> StoredPage | None:
        return self.pages.get(page)


@pytest.fixture(scope="module", params=[4 << 10, 16 << 10], ids=["blocks of now", "of 0.1.0"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = OpenOnes(request.param)
    yield made
    for file in made.files:
        file.close()


def gathered(
    store: Any, ranges: list[FileRange], *, joined: bool = False
) -> tuple[dict[int, bytes], list[int], list[int]]:
    """What came, which are for later, and which are too long for one piece of memory."""
    hits = RangeHits(store, memoryview(mmap.mmap(-1, PAGE)))
    memory, file = memoryview(bytearray(ROOM)), AskedFile(REF)
    came: dict[int, bytes] = {}
    later: list[int] = []
    long: list[int] = []
    index = 0
    while index < len(ranges):
        before = index
        index, used = hits.gather([file, None], ranges, index, memory, later, joined=joined)
        at = 0
        while at < used:
            number, status, length, total = RANGE_FRAME.unpack_from(memory, at)
            at += RANGE_FRAME.size
            data = bytes(memory[at : at + length])
            assert total == checksum(data)
            assert joined or status == FRAME_DATA
            came |= taken_apart(ranges, number, status, data)
            at += length
        assert at == used
        if index == before:
            long.append(index)
            index += 1
    assert file.sent_bytes == sum(map(len, came.values()))
    return came, later, long


def taken_apart(ranges: list[FileRange], number: int, status: int, data: bytes) -> dict[int, bytes]:
    """A frame as a reader takes it: of one range, or of as many from `number` on as its length holds."""
    if status == FRAME_DATA:
        return {number: data}
    assert status == FRAME_JOINED
    came = {}
    while data:
        length = max(0, min(ranges[number].length, len(DATA) - ranges[number].start))
        assert 0 < length <= len(data)
        came[number], data = data[:length], data[length:]
        number += 1
    assert len(came) > 1
    return came


PLACES = st.tuples(st.integers(0, len(DATA) + 10), st.one_of(st.integers(0, 9000), st.integers(0, 3 * PAGE)))


@settings(deadline=None)
@given(st.lists(PLACES, max_size=40), st.booleans())
def test_every_range_is_right_or_left(store: Any, places: list[tuple[int, int]], joined: bool) -> None:
    ranges = [FileRange(0, start, length) for start, length in places]
    came, later, long = gathered(store, ranges, joined=joined)
    assert sorted([*came, *later, *long]) == list(range(len(ranges)))
    for number, (start, length) in enumerate(places):
        want = DATA[start : start + length]
        here = all(index != MISSING for index in range(start // PAGE, (start + len(want) - 1) // PAGE + 1))
        if number in came:
            assert came[number] == want
            assert here or not want
        elif number in later:
            assert want
            assert not here
        else:
            assert RANGE_FRAME.size + len(want) > ROOM


@pytest.mark.parametrize("joined", [False, True])
def test_ranges_of_no_file_are_left(store: Any, joined: bool) -> None:
    asked = [FileRange(1, 0, 10), FileRange(0, 0, 10), FileRange(1, 5, 10)]
    came, later, _ = gathered(store, asked, joined=joined)
    assert (came, later) == ({1: DATA[:10]}, [0, 2])


def test_neighbours_are_one_frame_up_to_what_is_not_at_hand() -> None:
    store = OpenOnes(4 << 10)
    starts = [0, 100, 7000, MISSING * PAGE, 50, 60, 70]
    ranges = [FileRange(0, start, 500) for start in starts]
    memory, later = memoryview(bytearray(ROOM)), list[int]()
    hits = RangeHits(store, memoryview(mmap.mmap(-1, PAGE)))  # type: ignore[arg-type]
    index, used = hits.gather([AskedFile(REF)], ranges, 0, memory, later, joined=True)
    assert (index, later) == (7, [3])
    assert used == 2 * RANGE_FRAME.size + 6 * 500
    first = RANGE_FRAME.unpack_from(memory, 0)
    second = RANGE_FRAME.unpack_from(memory, RANGE_FRAME.size + 1500)
    assert (first[:3], second[:3]) == ((0, FRAME_JOINED, 1500), (4, FRAME_JOINED, 1500))
    for file in store.files:
        file.close()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, PAGE - 1), st.integers(0, PAGE - 5000), st.integers(1, 5000))
def test_a_wrong_byte_under_a_range_is_never_sent(store: Any, wrong: int, start: int, length: int) -> None:
    page = store.pages[PageId(REF.file_id, 1)]
    first, last = page.header.cover(start, start + length)
    flipped = bytes([DATA[PAGE + wrong] ^ 0x20])
    os.pwrite(page.fd, flipped, HEADER_BYTES + wrong)
    try:
        came, later, _ = gathered(store, [FileRange(0, PAGE + start, length)])
        pair, both, _ = gathered(store, [FileRange(0, 0, 7), FileRange(0, PAGE + start, length)], joined=True)
    finally:
        os.pwrite(page.fd, DATA[PAGE + wrong : PAGE + wrong + 1], HEADER_BYTES + wrong)
    if first <= wrong < last:
        assert (came, later) == ({}, [0])
        assert (pair, both) == ({0: DATA[:7]}, [1])
    else:
        assert came == {0: DATA[PAGE + start : PAGE + start + length]}
