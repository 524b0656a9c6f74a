"""Spans with sums of their own, from pages at hand: the right bytes or none."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import scripted_worker as script
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.checksum import checksum
from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_cache.same_host.held_page import HeldPage
from kara_cache.same_host.local_pages import LocalPages
from kara_cache.same_host.summed_spans import JoinedFiles, read_summed
from kara_cache.ufs.base import FileInfo

PAGE = 64 << 10
SIZES = (2 * PAGE + 100, 0, 10, PAGE, 3 * PAGE - 1)
FILES = [FileInfo(f"/m/{number}.blk", size, "v") for number, size in enumerate(SIZES)]
STREAM = JoinedFiles(FILES)
CONTENT = random.Random(4).randbytes(sum(SIZES))
NOW = 1000.0


def held(left_out: Callable[[int, int], bool] = lambda file, index: False) -> LocalPages:
    """The pages of all files but those left out."""
    local = LocalPages(clock=lambda: NOW)
    local.page_sizes = (PAGE,)
    for number, identity in enumerate(STREAM.file_ids):
        data = CONTENT[STREAM.bases[number] : STREAM.ends[number]]
        for index in range(-(-len(data) // PAGE)):
            if left_out(number, index):
                continue
            part = data[index * PAGE : (index + 1) * PAGE]
            with script.page_file(PageId(identity, index), part, page_bytes=PAGE) as file:
                fd = os.dup(file.fileno())
            header = PageHeader.decode(os.pread(fd, HEADER_BYTES, 0))
            local.pages[PAGE, identity, index] = HeldPage(fd, header, NOW)
    return local


ALL = held()
spans = st.lists(st.tuples(st.integers(0, len(CONTENT)), st.integers(1, 2 * PAGE)), max_size=20)


def asked(wanted: list[tuple[int, int]]) -> tuple[list[int], list[int], list[bytes]]:
    starts = [start for start, _ in wanted]
    stops = [start + length for start, length in wanted]
    return starts, stops, [CONTENT[a:b] for a, b in zip(starts, stops, strict=True)]


def inside_one_file(start: int, stop: int) -> bool:
    return any(a <= start and stop <= b for a, b in zip(STREAM.bases, STREAM.ends, strict=False))


@given(spans)
def test_spans_of_one_file_are_there_others_are_left(wanted: list[tuple[int, int]]) -> None:
    starts, stops, parts = asked(wanted)
    found = read_summed(ALL, STREAM, starts, stops, [*map(checksum, parts)])
    for start, stop, part, got in zip(starts, stops, parts, found, strict=True):
        if stop - start <= PAGE and inside_one_file(start, stop):
            assert got == part
        else:
            assert got is None


@given(spans, st.integers(0, len(CONTENT) - 1), st.integers(0, 7))
def test_no_span_has_a_wrong_byte(wanted: list[tuple[int, int]], wrong: int, bit: int) -> None:
    number = next(at for at, end in enumerate(STREAM.ends) if wrong < end)
    index, offset = divmod(wrong - STREAM.bases[number], PAGE)
    page = ALL.pages[PAGE, STREAM.file_ids[number], index]
    starts, stops, parts = asked(wanted)
    with open(f"/proc/self/fd/{page.fd}", "r+b", buffering=0) as raw:
        os.pwrite(raw.fileno(), bytes([CONTENT[wrong] ^ 1 << bit]), HEADER_BYTES + offset)
        try:
            found = read_summed(ALL, STREAM, starts, stops, [*map(checksum, parts)])
        finally:
            os.pwrite(raw.fileno(), CONTENT[wrong : wrong + 1], HEADER_BYTES + offset)
    for start, stop, part, got in zip(starts, stops, parts, found, strict=True):
        assert got in (None, part)
        if start <= wrong < stop:
            assert got is None


def test_pages_that_are_not_at_hand_are_left() -> None:
    local = held(lambda file, index: (file, index) in ((0, 1), (4, 0)))
    starts, stops, parts = asked([(0, 10), (PAGE - 5, 10), (PAGE + 5, 10), (STREAM.bases[4], 10)])
    sums = [*map(checksum, parts)]
    assert read_summed(local, STREAM, starts, stops, sums) == [parts[0], None, None, None]
    expired = held()
    for page in expired.pages.values():
        page.renew_at = NOW - 1
    assert read_summed(expired, STREAM, starts, stops, sums) == [None] * 4


@pytest.mark.parametrize(
    ("start", "stop"), [(-5, 5), (5, 5), (5, 1), (len(CONTENT), len(CONTENT) + 1), (0, 1 << 62)]
)
def test_what_is_no_span_of_the_stream_is_left(start: int, stop: int) -> None:
    assert read_summed(ALL, STREAM, [start], [stop], [0]) == [None]


def test_a_page_that_cannot_be_read_is_left() -> None:
    local = held()
    starts, stops, parts = asked([(5, 10), (2 * PAGE - 5, 10)])
    broken = os.open(os.devnull, os.O_WRONLY)
    for page in local.pages.values():
        os.dup2(broken, page.fd)  # reads of it are EBADF
    os.close(broken)
    assert read_summed(local, STREAM, starts, stops, [*map(checksum, parts)]) == [None, None]


def test_without_pages_or_with_pages_of_two_sizes_all_is_left() -> None:
    local = LocalPages()
    assert read_summed(local, STREAM, [0], [1], [checksum(CONTENT[:1])]) == [None]
    local = held()
    local.page_sizes = (PAGE, 2 * PAGE)
    assert read_summed(local, STREAM, [0], [1], [checksum(CONTENT[:1])]) == [None]
