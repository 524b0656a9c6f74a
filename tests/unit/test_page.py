"""The page header is a contract on disk: its bytes, its limits, and what it refuses."""

from __future__ import annotations

import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.checksum import checksum
from kara_cache.errors import FormatError
from kara_cache.page import (
    DEFAULT_PAGE_BYTES,
    HEADER_BYTES,
    MAX_PAGE_BYTES,
    MIN_PAGE_BYTES,
    PageHeader,
    PageId,
    block_bytes_for,
    file_id,
)

SUM_AT = HEADER_BYTES - 8
FIXED_BYTES = 72


def header_of(
    data: bytes, *, page_bytes: int = 65536, path: str = "/m/file", block_bytes: int = 0
) -> PageHeader:
    """Three blocks of 16 KiB for most of the data here."""
    size = block_bytes or (16 << 10 if page_bytes == 65536 else 0)
    page = PageId(bytes(range(16)), 7)
    return PageHeader.of(page, data, page_bytes=page_bytes, created_ns=5, path=path, block_bytes=size)


def resealed(raw: bytes, *changes: tuple[int, bytes]) -> bytes:
    """The header with bytes replaced and a matching checksum: what a bug or an intruder would write."""
    body = bytearray(raw[:SUM_AT])
    for at, new in changes:
        body[at : at + len(new)] = new
    return bytes(body) + struct.pack("<Q", checksum(body))


GOLDEN = {
    "three blocks and a path": (
        PageHeader.of(
            PageId(bytes(range(16)), 7),
            bytes(i % 251 for i in range(40000)),
            page_bytes=65536,
            created_ns=1_700_000_000_123_456_789,
            path="/datasets/中/a b.bin",
            block_bytes=16 << 10,  # as version 0.1.0 took them
        ),
        """
        4b41524150414745 01000000 00000100  000102030405060708090a0b0c0d0e0f 0700000000000000
        15cd853dfe9c9717 1b7c81ae219e9650 409c0000 00400000 0300 1500 00000000
        31081d78b47f8f16 b68466c27179e88c 8a9e593c69263b16
        2f64617461736574732fe4b8ad2f6120622e62696e
        """,
        "25764ecd631cb8ae",
    ),
    "one byte, largest index, no path": (
        PageHeader.of(
            PageId(b"\xff" * 16, 2**64 - 1), b"\0", page_bytes=1 << 20, created_ns=0, block_bytes=16 << 10
        ),
        """
        4b41524150414745 01000000 00001000  ffffffffffffffffffffffffffffffff ffffffffffffffff
        0000000000000000 dbec4e07f4df4bc4 01000000 00400000 0100 0000 00000000
        dbec4e07f4df4bc4
        """,
        "ef6e317ec5efe2dc",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_header_bytes_never_change(name: str) -> None:
    header, start, header_sum = GOLDEN[name]
    golden = bytes.fromhex(start).ljust(SUM_AT, b"\0") + bytes.fromhex(header_sum)
    assert header.encode() == golden
    assert PageHeader.decode(golden) == header


@pytest.mark.parametrize(
    ("path", "version", "size", "expected"),
    [
        ("/m/a", "v1", 10, "780db652ff97000e8690c619e1cab073"),
        ("", "", 0, "6ea93be2de16363b3a6e0887242315be"),
        ("/数据/é", '"etag"', 2**40, "48499142a7f721c167c601e59f189f35"),
    ],
)
def test_file_id_never_changes(path: str, version: str, size: int, expected: str) -> None:
    assert file_id(path, version, size).hex() == expected


def test_file_id_keeps_its_parts_apart() -> None:
    texts = ["", "a", "b", "ab", "1", "1:a", "a1:", "a0:", ":", "11", "\udc80"]
    triples = list(product(texts, texts, [0, 1, 10, 11, 110]))
    assert len({file_id(*triple) for triple in triples}) == len(triples)


@pytest.mark.parametrize("page_bytes", [MIN_PAGE_BYTES, DEFAULT_PAGE_BYTES, MAX_PAGE_BYTES, 4194559, 4194561])
def test_a_full_page_has_at_most_256_blocks(page_bytes: int) -> None:
    step = block_bytes_for(page_bytes)
    assert step >= 4 << 10
    assert -(-page_bytes // step) <= 256


def test_header_of_the_largest_page_is_one_kernel_page_with_room_for_a_path() -> None:
    header = header_of(bytes(MAX_PAGE_BYTES), page_bytes=MAX_PAGE_BYTES, path="/m/" + "x" * 1900)
    raw = header.encode()
    assert len(raw) == HEADER_BYTES == 4096
    assert PageHeader.decode(raw) == header


def test_a_path_is_kept_to_the_last_byte_that_fits_and_left_out_beyond() -> None:
    room = SUM_AT - FIXED_BYTES - 8
    fits, too_long = header_of(b"x", path="p" * room), header_of(b"x", path="p" * (room + 1))
    assert PageHeader.decode(fits.encode()).path == "p" * room
    assert PageHeader.decode(too_long.encode()).path == ""


@pytest.mark.parametrize("length", [0, 65537])
def test_an_empty_or_oversized_page_has_no_header(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes, allowed 1 .. 65536"):
        header_of(bytes(length))


@given(
    identity=st.binary(min_size=16, max_size=16),
    index=st.integers(0, 2**64 - 1),
    data=st.binary(min_size=1, max_size=70000),
    page_bytes=st.sampled_from([70000, 1 << 17, DEFAULT_PAGE_BYTES, MAX_PAGE_BYTES]),
    created_ns=st.integers(0, 2**64 - 1),
    path=st.text(st.characters(), max_size=60),
)
def test_decode_returns_what_encode_was_given(
    identity: bytes, index: int, data: bytes, page_bytes: int, created_ns: int, path: str
) -> None:
    page = PageId(identity, index)
    header = PageHeader.of(page, data, page_bytes=page_bytes, created_ns=created_ns, path=path)
    assert PageHeader.decode(header.encode()) == header
    assert PageHeader.decode(memoryview(bytearray(header.encode()))) == header


def test_every_single_byte_corruption_is_refused() -> None:
    raw = bytearray(header_of(bytes(40000)).encode())
    for at in range(HEADER_BYTES):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            raw[at] ^= flip
            with pytest.raises(FormatError):
                PageHeader.decode(raw)
            raw[at] ^= flip
    PageHeader.decode(raw)


@pytest.mark.parametrize("length", [0, 1, 71, 72, 4088, 4095, 4097, 8192])
def test_any_other_length_is_refused(length: int) -> None:
    raw = header_of(b"x").encode() * 2
    with pytest.raises(FormatError, match=f"{length} bytes, expected 4096"):
        PageHeader.decode(raw[:length])


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


HOSTILE = {
    "foreign magic": (0, b"KARAPAGF"),
    "format of the future": (8, u32(2)),
    "page size below the data": (12, u32(39999)),
    "no data": (56, u32(0)),
    "data beyond the page": (56, u32(65537)),
    "length of another block count": (56, u32(32768)),
    "length at the limit of its field": (56, u32(2**32 - 1)),
    "no block size": (60, u32(0)),
    "block size of another count": (60, u32(65536)),
    "no blocks": (64, u16(0)),
    "one block too many": (64, u16(4)),
    "sums past the header": (64, u16(65535)),
    "path past the header": (66, u16(SUM_AT - FIXED_BYTES - 3 * 8 + 1)),
    "path at the limit of its field": (66, u16(65535)),
    "path cut short": (66, u16(6)),
    "reserved field in use": (68, b"\1"),
    "path that is not UTF-8": (FIXED_BYTES + 3 * 8, b"\xff"),
    "padding in use": (SUM_AT - 1, b"\1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_with_a_valid_sum_and_a_wrong_field_is_refused(name: str) -> None:
    raw = header_of(bytes(40000)).encode()
    assert resealed(raw) == raw
    with pytest.raises(FormatError):
        PageHeader.decode(resealed(raw, HOSTILE[name]))


@given(st.lists(st.tuples(st.integers(0, 127), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_a_resealed_header_is_refused_or_means_exactly_its_bytes(changes: list[tuple[int, bytes]]) -> None:
    raw = resealed(header_of(bytes(40000)).encode(), *changes)
    try:
        header = PageHeader.decode(raw)
    except FormatError:
        return
    assert header.encode() == raw


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(start: bytes) -> None:
    raw = start.ljust(HEADER_BYTES, b"\0")
    with pytest.raises(FormatError):
        PageHeader.decode(raw)
    with pytest.raises(FormatError):
        PageHeader.decode(resealed(raw))


# -- parts of a page ---------------------------------------------------------------------------------

DATA = bytes(i * 7 % 251 for i in range(40000))


@given(st.integers(0, 39999), st.integers(1, 40000))
def test_cover_is_the_smallest_run_of_blocks_and_verifies(start: int, length: int) -> None:
    header, step = header_of(DATA), 16384
    stop = min(start + length, len(DATA))
    first, last = header.cover(start, stop)
    touched = [block for block in range(3) if block * step < stop and (block + 1) * step > start]
    assert (first, last) == (touched[0] * step, min((touched[-1] + 1) * step, len(DATA)))
    assert header.verify_blocks(DATA[first:last], first)


@given(st.integers(0, 39999), st.integers(1, 255), st.sampled_from([4 << 10, 16 << 10]))
def test_a_wrong_byte_anywhere_is_not_verified(at: int, flip: int, block_bytes: int) -> None:
    data = bytearray(DATA)
    data[at] ^= flip
    assert not header_of(DATA, block_bytes=block_bytes).verify_blocks(data, 0)
    assert header_of(DATA, block_bytes=block_bytes).verify_blocks(DATA, 0)


def test_blocks_are_verified_in_their_place_only() -> None:
    data = bytes(16384) + bytes([1]) * 16384
    header = header_of(data)
    assert header.verify_blocks(data[16384:], 16384)
    assert not header.verify_blocks(data[16384:], 0)
    assert not header.verify_blocks(data[:16384], 16384)


@pytest.mark.parametrize(
    ("data", "start"),
    [
        pytest.param(b"", 0, id="nothing read, as from a file cut to its header"),
        pytest.param(DATA[:-1], 0, id="last byte missing"),
        pytest.param(DATA[:20000], 0, id="cut inside a block"),
        pytest.param(DATA + b"\0", 0, id="more than the page holds"),
        pytest.param(DATA[:16384], 49152, id="past the end"),
        pytest.param(DATA[1:16384], 1, id="start inside a block"),
    ],
)
def test_what_is_not_whole_blocks_is_not_verified(data: bytes, start: int) -> None:
    assert not header_of(DATA).verify_blocks(data, start)
