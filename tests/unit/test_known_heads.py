"""Heads of hits are parsed once, and say what they would say if they were parsed each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.transport.response import KnownHeads, page_bytes_of, parse_head, sums_of


def head(length: int, page_bytes: int, end: str) -> bytes:
    lines = [f"Content-Length: {length}", f"X-Kara-Page: {page_bytes}", "X-Kara-Source: hit", end]
    return "\r\n".join(["HTTP/1.1 200 OK", *lines]).encode()


SUMS = st.integers(0, 2**64 - 1)
HEADS = st.builds(
    lambda length, page, total: head(length, page, f"X-Kara-Sum: {total:016x}"),
    st.sampled_from([4096, 10, 1 << 20]),
    st.sampled_from([1 << 20, 1 << 16]),
    SUMS,
)


@given(st.lists(HEADS, max_size=30))
def test_known_heads_are_as_parsed(raws: list[bytes]) -> None:
    known = KnownHeads()
    for raw in raws:
        found, want = known.parse(raw), parse_head(raw)
        assert (found.status, found.length, found.keep_alive) == (want.status, want.length, want.keep_alive)
        assert found.total in (-1, *sums_of(want.fields))
        if found.total >= 0:
            assert found.page_bytes == page_bytes_of(want)


def test_the_second_head_of_a_kind_is_known() -> None:
    known = KnownHeads()
    assert known.parse(head(10, 1 << 20, "X-Kara-Sum: 00000000000000aa")).total == -1
    assert known.parse(head(10, 1 << 20, "X-Kara-Sum: 00000000000000bb")).total == 0xBB
    assert known.parse(head(11, 1 << 20, "X-Kara-Sum: 00000000000000bb")).total == -1


@pytest.mark.parametrize(
    "end",
    [
        "X-Kara-Sum: 00000000000000aa,00000000000000bb",
        "X-Kara-Sum: 000000000000_0bb",
        "X-Kara-Sum: +0000000000000bb",
        "X-Kara-Sum: 00000000000000zz",
        "X-Kara-Summary: 0000000000bb",
        "X-Kara-Pass: own",
    ],
)
def test_other_heads_are_parsed_each_time(end: str) -> None:
    known = KnownHeads()
    raw = head(10, 1 << 20, end)
    known.parse(head(10, 1 << 20, "X-Kara-Sum: 00000000000000aa"))
    for _ in range(3):
        found = known.parse(raw)
        assert found == parse_head(raw)
        assert found.total == -1


def test_errors_are_those_of_the_parser() -> None:
    known = KnownHeads()
    for _ in range(2):
        with pytest.raises(FormatError, match="Content-Length"):
            known.parse(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nX-Kara-Sum: 00000000000000aa")
        assert known.parse(b"HTTP/1.1 503 Busy\r\nContent-Length: 2").status == 503
