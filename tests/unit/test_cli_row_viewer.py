"""What the viewer shows, for any row, any keys and any size of terminal; nothing here needs one."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.cli.row_text import cells, cut, row_line, row_lines, shown, width
from kara_cache.cli.row_viewer import RowViewer
from kara_cache.errors import FormatError

KEYS = (
    *"nptbg/q 019",
    "up",
    "down",
    "left",
    "right",
    "page up",
    "page down",
    "enter",
    "\x1b",
    "\x7f",
    "é",
    "resize",
    "",
)
JSON_ROWS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
).map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
ROWS = st.lists(
    JSON_ROWS | st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "replace"))
)


def viewer_of(*values: object, begin: int = 0) -> RowViewer:
    return RowViewer([json.dumps(value, ensure_ascii=False).encode() for value in values], begin)


def press(viewer: RowViewer, *keys: str, height: int = 24) -> RowViewer:
    for key in keys:
        assert viewer.press(key, height)
    return viewer


def body(viewer: RowViewer, height: int = 24, columns: int = 80) -> list[str]:
    return [line.rstrip() for line in viewer.frame(height, columns)[1:-1]]


@given(ROWS, st.lists(st.sampled_from(KEYS)), st.integers(0, 12), st.integers(0, 40), st.integers(0, 99))
def test_it_fits_every_terminal(
    rows: Sequence[bytes], keys: list[str], height: int, columns: int, begin: int
) -> None:
    viewer = RowViewer(rows, begin)
    for key in keys:
        viewer.press(key, height)
        frame = viewer.frame(height, columns)
        assert len(frame) == (height if columns else 0)
        for line in frame:
            assert width(line) == columns
            assert all(ord(c) >= 32 and c != "\x7f" for c in line)
            line.encode()
        assert not rows or 0 <= viewer.index < len(rows)


@given(st.text(), st.integers(0, 30), st.integers(0, 30))
def test_cut(text: str, start: int, columns: int) -> None:
    text = shown(text)
    found = cut(text, start, columns)
    assert width(found) == min(columns, max(0, width(text) - start))


def test_cut_in_the_middle_of_a_wide_character() -> None:
    assert cut("ab内容cd", 0, 80) == "ab内容cd"
    assert cut("ab内容cd", 3, 3) == " 容"
    assert cut("ab内容cd", 2, 3) == "内 "
    assert cut("ab内容cd", 4, 4) == "容cd"
    assert cut("e\u0301x", 0, 1) == "e\u0301"
    assert [cells(c) for c in "a内\u0301"] == [1, 2, 0]


def test_rows_are_indented_json() -> None:
    viewer = viewer_of({"id": 1, "name": "内容"})
    assert body(viewer)[:4] == ["{", '    "id": 1,', '    "name": "内容"', "}"]
    assert viewer.frame(24, 80)[0].startswith(" Index: 0  of 1  line 1 of 4 ")
    assert "[N]ext" in viewer.frame(24, 80)[-1]


def test_next_and_previous() -> None:
    viewer = viewer_of(*range(5), begin=3)
    assert press(viewer, "N").index == 4
    assert press(viewer, "n").index == 4
    assert "last row" in viewer.frame(24, 80)[-1]
    assert press(viewer, "p", "P", "p", "p", "p").index == 0
    assert "first row" in viewer.frame(24, 80)[-1]
    assert viewer_of(*range(5), begin=99).index == 4


def test_scrolling() -> None:
    viewer = viewer_of(list(range(100)))
    height = 12
    assert body(press(viewer, "down", "down", height=height), height)[0] == "    1,"
    assert body(press(viewer, "b", height=height), height) == [f"    {i}," for i in range(91, 99)] + [
        "    99",
        "]",
    ]
    assert body(press(viewer, "page up", height=height), height)[0] == "    82,"
    assert body(press(viewer, "t", height=height), height)[0] == "["
    assert body(press(viewer, "up", height=height), height)[0] == "["
    assert body(press(viewer, "right", "right"))[1] == ""
    assert body(press(viewer, "left", "left", "left"))[1] == "    0,"


def test_scrolling_sideways_ends_with_the_longest_line() -> None:
    viewer = press(viewer_of("x" * 20), *["right"] * 50)
    assert body(viewer)[0] == '"'


def test_going_to_a_row() -> None:
    viewer = viewer_of(*range(500))
    assert press(viewer, "g", "4", "2", "7", "\x7f", "enter").index == 42
    for wrong in ("500", "-1", "x", "", "9" * 5000, "²"):
        press(viewer, "g", *wrong, "enter")
        assert viewer.index == 42
        assert "there are 500" in viewer.frame(24, 80)[-1]
    assert press(viewer, "g", "7", "\x1b").index == 42
    assert viewer.frame(24, 80)[-1].startswith("[N]ext")
    press(viewer, "g", *"1234567890", *"1234567890")
    assert viewer.frame(24, 12)[-1] == "01234567890_"


def test_searching() -> None:
    viewer = viewer_of(*({"id": i, "name": f"name {i}", "tail": [i]} for i in range(300)))
    press(viewer, "/", *"name 29", "enter")
    assert (viewer.index, body(viewer, 3)[0].strip()) == (29, '"name": "name 29",')
    assert press(viewer, "/", "enter").index == 290  # the same again
    press(viewer, *["/", "enter"] * 9, "/", "enter")
    assert viewer.index == 29  # from the beginning
    press(viewer, "/", *"nowhere", "enter")
    assert "no row has nowhere" in viewer.frame(24, 80)[-1]
    assert viewer.index == 29
    viewer.press("/", 24)
    for key in "never":
        viewer.press(key, 24)
    viewer.press("enter", 24, stop=lambda: True)
    assert "search stopped after 64 rows" in viewer.frame(24, 80)[-1]


@pytest.mark.parametrize("key", ["q", "Q", "\x1b"])
def test_quitting(key: str) -> None:
    assert not viewer_of(1).press(key, 24)


def test_no_rows() -> None:
    viewer = press(viewer_of(), *"nptb", "g", "0", "enter", "/", "x", "enter")
    assert viewer.frame(24, 80)[0].startswith(" Index: -  (no rows)")


def test_a_damaged_row_is_shown_as_such() -> None:
    class Damaged(list[bytes]):
        def __getitem__(self, index: object) -> bytes:  # type: ignore[override]  # only what the viewer asks
            if index == 1:
                raise FormatError("row 1: its checksum is another")
            return b"{}"

    viewer = RowViewer(Damaged([b""] * 3))
    assert body(press(viewer, "n"))[0] == "! row 1: its checksum is another"
    assert body(press(viewer, "n"))[0] == "{}"


LINES = {
    b'{"a": 1}': '{"a": 1}',
    b'{"a":\n 1}': '{"a":1}',
    '"内容"'.encode(): '"内容"',
    b"12": "12",
    b"no json": '"no json"',
    b"": '""',
    b"\xff\x00": '{"base64": "/wA="}',
    b"[" * 100_000: json.dumps("[" * 100_000),
}


@pytest.mark.parametrize("row", LINES, ids=range(len(LINES)))
def test_lines(row: bytes) -> None:
    assert row_line(row) == LINES[row]


@given(JSON_ROWS | st.binary())
def test_a_line_is_json(row: bytes) -> None:
    line = row_line(row)
    json.loads(line)
    assert len(line.splitlines()) == 1


def test_bytes_are_dumped() -> None:
    row = bytes(range(200, 256)) * 2
    lines = row_lines(row)
    assert lines[0].startswith("00000000  c8 c9 ca cb")
    assert len(lines) == 7
    assert bytes.fromhex("".join(line[10:58] for line in lines)) == row
    assert row_lines(b"\xff" * 100_000)[-1] == "... 34464 bytes more"
    assert row_lines(b"abc\ndef") == ["abc", "def"]


def test_what_a_terminal_would_obey() -> None:
    assert shown("a\x1b[2Jb\tc\ud800") == "a\ufffd[2Jb    c\ufffd"
