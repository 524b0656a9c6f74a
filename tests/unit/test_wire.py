"""The wire codecs: bytes and names that both ends must agree on, and what decoding refuses."""

from __future__ import annotations

import errno
import inspect
import io
import json
import struct
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache import errors, wire
from kara_cache.errors import FormatError, KaraError, WorkerUnavailable
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import FileRange, RangeFile

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
U64 = st.integers(0, 2**64 - 1)

# -- names -------------------------------------------------------------------------------------------


def test_a_read_target_never_changes() -> None:
    target = wire.read_target("/m/a b?&#%/中.bin", '"e/1"', 10, keep=True)
    assert target == "/kara/v1/read?path=/m/a%20b%3F%26%23%25/%E4%B8%AD.bin&version=%22e%2F1%22&size=10"
    assert wire.read_target("/m/a", "", 0, keep=False) == "/kara/v1/read?path=/m/a&version=&size=0&keep=0"


@given(path=TEXT, version=TEXT, size=U64, keep=st.booleans())
def test_a_read_target_is_parsed_back_by_any_http_library(
    path: str, version: str, size: int, keep: bool
) -> None:
    target = wire.read_target(path, version, size, keep=keep)
    assert target.isascii()
    assert not any(character.isspace() for character in target)
    query = parse_qs(urlsplit(target).query, keep_blank_values=True, strict_parsing=True)
    expected = {"path": [path], "version": [version], "size": [str(size)]}
    assert query == (expected if keep else expected | {"keep": ["0"]})


@given(start=st.integers(0, 5000), length=st.integers(0, 2000), page_bytes=st.integers(1, 700))
def test_pieces_are_the_range_cut_at_page_boundaries(start: int, length: int, page_bytes: int) -> None:
    pieces = list(wire.pieces(start, length, page_bytes))
    assert [at for first, last in pieces for at in range(first, last)] == list(range(start, start + length))
    assert all(first < last and first // page_bytes == (last - 1) // page_bytes for first, last in pieces)
    assert all(last % page_bytes == 0 for _, last in pieces[:-1])


# -- errors ------------------------------------------------------------------------------------------

OUR_ERRORS: list[type[Exception]] = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KaraError)
]
FILE_FACTS: list[type[Exception]] = [
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
]
OTHERS: list[type[Exception]] = [ValueError, NotImplementedError, io.UnsupportedOperation]


def over_the_wire(error: BaseException) -> tuple[int, BaseException]:
    status, document = wire.encode_error(error)
    return status, wire.decode_error(status, json.dumps(document).encode(), "10.0.0.1:7070")


@pytest.mark.parametrize("kind", OUR_ERRORS + FILE_FACTS + OTHERS)
def test_an_error_arrives_as_the_class_it_was(kind: type[BaseException]) -> None:
    status, arrived = over_the_wire(kind("/m/é: what, limit 1, got 2"))
    assert type(arrived) is kind
    assert str(arrived) == "/m/é: what, limit 1, got 2"
    assert 400 <= status < 600


def test_the_whole_tree_is_covered() -> None:
    assert {errors.KaraError, errors.AccessDenied, errors.LeaseLost} < set(OUR_ERRORS)
    codes = [wire.encode_error(kind("x"))[1]["error"] for kind in OUR_ERRORS + FILE_FACTS + OTHERS]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        (errors.AccessDenied, "access_denied", 401),
        (errors.StaleVersion, "stale", 412),
        (errors.PageCorrupt, "corrupt", 503),
        (errors.WorkerBusy, "busy", 503),
        (errors.UnderStoreError, "under_store", 502),
        (FileNotFoundError, "not_found", 404),
        (PermissionError, "permission", 403),
        (IsADirectoryError, "is_a_directory", 409),
        (ValueError, "value", 400),
        (io.UnsupportedOperation, "unsupported_operation", 405),
    ],
)
def test_codes_and_statuses_never_change(kind: type[BaseException], code: str, status: int) -> None:
    assert wire.encode_error(kind("x")) == (status, {"error": code, "message": "x"})


def test_an_operating_systems_error_keeps_its_text_and_the_file() -> None:
    _, arrived = over_the_wire(FileNotFoundError(errno.ENOENT, "No such file or directory", "/m/a"))
    assert type(arrived) is FileNotFoundError
    assert str(arrived) == "No such file or directory: /m/a"


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EROFS])
def test_a_fact_about_a_file_without_a_class_keeps_its_number(number: int) -> None:
    status, arrived = over_the_wire(OSError(number, "a fact", "/m/d"))
    assert (status, type(arrived)) == (409, OSError)
    assert isinstance(arrived, OSError)
    assert arrived.errno == number
    assert "a fact: /m/d" in str(arrived)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.EMFILE, "Too many open files", "/private/pages"), id="EMFILE"),
        pytest.param(OSError(errno.EIO, "Input/output error", "/private/pages"), id="EIO"),
        pytest.param(ConnectionResetError("/private/socket"), id="reset"),
        pytest.param(TimeoutError("/private/socket"), id="timeout"),
        pytest.param(KeyError("/private/secret"), id="bug"),
    ],
)
def test_a_workers_own_trouble_is_a_detour_not_an_answer_and_keeps_its_text(error: Exception) -> None:
    status, document = wire.encode_error(error)
    assert (status, document["error"]) == (500, "internal")
    assert "private" not in document["message"]
    _, arrived = over_the_wire(error)
    assert isinstance(arrived, WorkerUnavailable)
    assert arrived.reason == "internal"
    assert type(error).__name__ in str(arrived)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502 Bad Gateway</html>",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"error": "stale"}',
        b'{"error": ["stale"], "message": "x"}',
        b'{"error": "stale", "message": 1}',
        b'{"error": "no_such_code", "message": "x"}',
        b"[" * 200_000,
        b'{"error":' * 50_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_is_not_ours_is_an_unavailable_worker(body: bytes) -> None:
    arrived = wire.decode_error(502, body, "10.0.0.1:7070")
    assert isinstance(arrived, WorkerUnavailable)
    assert arrived.reason == "protocol"
    assert "10.0.0.1:7070: HTTP 502" in str(arrived)


@given(st.binary(max_size=200))
def test_any_body_decodes_to_some_error(body: bytes) -> None:
    assert isinstance(wire.decode_error(500, body, "w"), BaseException)


# -- file facts --------------------------------------------------------------------------------------


@given(
    st.builds(
        FileInfo,
        path=TEXT,
        size=U64,
        version=TEXT,
        mtime=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        is_dir=st.booleans(),
    )
)
def test_file_info_round_trips_as_json(info: FileInfo) -> None:
    assert wire.decode_info(json.loads(json.dumps(wire.encode_info(info)))) == info


def test_file_info_leaves_out_what_is_not_known() -> None:
    assert wire.encode_info(FileInfo("/m/a", 3, "v")) == {"path": "/m/a", "size": 3, "version": "v"}
    assert wire.encode_info(FileInfo("/m", 0, "", is_dir=True))["dir"] is True


GOOD = {"path": "/m/a", "size": 3, "version": "v", "mtime": 1.5, "dir": False}


@pytest.mark.parametrize(
    "change",
    [
        {"path": 1},
        {"path": None},
        {"version": None},
        {"size": -1},
        {"size": "3"},
        {"size": 3.5},
        {"size": True},
        {"size": float("inf")},
        {"mtime": "now"},
        {"dir": "false"},
        {"dir": 0},
    ],
    ids=repr,
)
def test_file_info_of_other_types_is_refused(change: dict[str, object]) -> None:
    assert wire.decode_info(GOOD) == FileInfo("/m/a", 3, "v", 1.5)
    with pytest.raises(FormatError):
        wire.decode_info(GOOD | change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "size", "version", "mtime", "dir"]), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(JSON)
def test_decoding_any_json_gives_file_info_or_a_format_error(document: object) -> None:
    try:
        info = wire.decode_info(document)  # type: ignore[arg-type]
    except FormatError:
        return
    assert wire.encode_info(info).items() >= {"path": info.path, "size": info.size}.items()


# -- ranges ------------------------------------------------------------------------------------------

GOLDEN_FILES = [RangeFile("/m/é", "v1", 10), RangeFile("/b", "", 2**40)]
GOLDEN_RANGES = [FileRange(file=1, start=2**33, length=5), FileRange(file=0, start=0, length=10)]
GOLDEN_BODY = bytes.fromhex(
    "02000000 02000000"  # files, ranges
    "0500 0200 0a00000000000000 2f6d2fc3a9 7631"  # lengths of path and version, size, /m/é, v1
    "0200 0000 0000000000010000 2f62"
    "01000000 05000000 0000000002000000"  # file, length, start
    "00000000 0a000000 0000000000000000"
)


def test_ranges_bytes_never_change() -> None:
    assert wire.encode_ranges(GOLDEN_FILES, GOLDEN_RANGES) == GOLDEN_BODY
    assert wire.decode_ranges(GOLDEN_BODY) == (GOLDEN_FILES, GOLDEN_RANGES)


def test_a_frame_is_24_bytes_little_endian() -> None:
    assert wire.RANGE_FRAME.size == 24
    frame = wire.RANGE_FRAME.pack(3, 0, 5, 0x1122334455667788)
    assert frame == bytes.fromhex("03000000 00000000 0500000000000000 8877665544332211")


FILES = st.lists(st.builds(RangeFile, path=TEXT, version=TEXT, size=U64), min_size=1, max_size=5)


@given(st.data(), FILES)
def test_ranges_round_trip(data: st.DataObject, files: list[RangeFile]) -> None:
    one = st.builds(
        FileRange,
        file=st.integers(0, len(files) - 1),
        start=U64,
        length=st.integers(0, wire.MAX_READ_BYTES),
    )
    ranges = data.draw(st.lists(one, min_size=len(files), max_size=12))
    body = wire.encode_ranges(files, ranges)
    assert wire.decode_ranges(body) == (files, ranges)
    assert wire.decode_ranges(memoryview(bytearray(body))) == (files, ranges)


def test_no_ranges_is_a_valid_request() -> None:
    assert wire.decode_ranges(wire.encode_ranges([], [])) == ([], [])


def test_the_largest_request_fits_its_limit() -> None:
    file = RangeFile("/m/" + "x" * 900, "v" * 64, 1)
    body = wire.encode_ranges([file] * wire.MAX_RANGES, [FileRange(0, 0, 1)] * wire.MAX_RANGES)
    assert len(body) <= wire.MAX_RANGES_BODY_BYTES
    assert len(wire.decode_ranges(body)[1]) == wire.MAX_RANGES == 8192


@pytest.mark.parametrize("length", range(len(GOLDEN_BODY)))
def test_a_truncated_request_is_refused(length: int) -> None:
    with pytest.raises(FormatError):
        wire.decode_ranges(GOLDEN_BODY[:length])


def counts(files: int, ranges: int) -> bytes:
    return struct.pack("<II", files, ranges)


FILE = struct.pack("<HHQ", 1, 0, 1) + b"a"
RANGE = struct.pack("<IIQ", 0, 1, 0)
HOSTILE = {
    "bytes after the last range": GOLDEN_BODY + b"\0",
    "more files than ranges": counts(2, 1) + FILE * 2 + RANGE,
    "four billion files": counts(2**32 - 1, 2**32 - 1),
    "ranges beyond the limit": counts(1, wire.MAX_RANGES + 1) + FILE + RANGE * (wire.MAX_RANGES + 1),
    "path past the end": counts(1, 1) + struct.pack("<HHQ", 65535, 65535, 1) + b"a" + RANGE,
    "path that is not UTF-8": counts(1, 1) + struct.pack("<HHQ", 1, 0, 1) + b"\xff" + RANGE,
    "character cut in two": counts(1, 1) + struct.pack("<HHQ", 1, 1, 1) + b"\xc3\xa9" + RANGE,
    "file that is not listed": counts(1, 1) + FILE + struct.pack("<IIQ", 1, 1, 0),
    "range of a file when none is listed": counts(0, 1) + RANGE,
    "range beyond one stripe": counts(1, 1) + FILE + struct.pack("<IIQ", 0, wire.MAX_READ_BYTES + 1, 0),
    "body beyond its limit": bytes(wire.MAX_RANGES_BODY_BYTES + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        wire.decode_ranges(HOSTILE[name])


def decodes_or_is_refused(body: bytes) -> None:
    try:
        files, ranges = wire.decode_ranges(body)
    except FormatError:
        return
    assert wire.encode_ranges(files, ranges) == body


@given(st.binary(max_size=120))
def test_arbitrary_bytes_decode_or_are_a_format_error(body: bytes) -> None:
    decodes_or_is_refused(body)


@given(st.integers(0, 4), st.integers(0, 6), st.binary(max_size=120))
def test_arbitrary_bytes_after_plausible_counts(files: int, ranges: int, rest: bytes) -> None:
    decodes_or_is_refused(counts(files, ranges) + rest)


@given(st.lists(st.tuples(st.integers(0, len(GOLDEN_BODY) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_request_decodes_or_is_a_format_error(changes: list[tuple[int, int]]) -> None:
    body = bytearray(GOLDEN_BODY)
    for at, value in changes:
        body[at] = value
    decodes_or_is_refused(bytes(body))


@pytest.mark.parametrize(
    ("file", "piece"),
    [
        pytest.param(RangeFile("x" * 65536, "", 1), FileRange(0, 0, 1), id="path"),
        pytest.param(RangeFile("x", "v" * 65536, 1), FileRange(0, 0, 1), id="version"),
        pytest.param(RangeFile("x", "", 2**64), FileRange(0, 0, 1), id="size"),
        pytest.param(RangeFile("x", "", 1), FileRange(0, -1, 1), id="start"),
        pytest.param(RangeFile("x", "", 1), FileRange(0, 0, 2**32), id="length"),
    ],
)
def test_a_value_that_does_not_fit_is_the_callers_error(file: RangeFile, piece: FileRange) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        wire.encode_ranges([file], [piece])
