from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.quantity import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (4096, 4096),
        ("1_000", 1000),
        ("512B", 512),
        ("100GiB", 100 << 30),
        ("100 GiB", 100 << 30),
        (" 64MiB ", 64 << 20),
        ("64mib", 64 << 20),
        ("64Mi", 64 << 20),
        ("1.5KiB", 1536),
        ("2kB", 2000),
        ("2KB", 2000),
        ("1.5TB", 1_500_000_000_000),
        ("1PiB", 1 << 50),
        ("0.3B", 0),
    ],
)
def test_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1..5",
        "1e3",
        "10 G iB",
        "1,000",
        "0x10",
        "_1",
        "1_",
        "٣",
        "9" * 60,
        "1GiBs",
        "8192PiB",
        "1\nGiB x",
    ],
)
def test_not_bytes(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, True, None, b"1"])
def test_not_bytes_either(value: object) -> None:
    with pytest.raises(ValueError):
        parse_bytes(value)  # type: ignore[arg-type]


def test_an_ambiguous_unit_is_refused_with_both_meanings() -> None:
    with pytest.raises(ValueError, match=r"GiB \(1024\) or GB \(1000\)"):
        parse_bytes("100G")


def test_errors_name_the_accepted_forms() -> None:
    with pytest.raises(ValueError, match="KiB, MiB"):
        parse_bytes("ten")
    with pytest.raises(ValueError, match="ms, s, m, h, d or w"):
        parse_seconds("5 years")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("60s", 60),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("7d", 604800),
        ("2w", 1209600),
        ("5m", 300),
        ("5min", 300),
        ("0", 0),
        (3, 3),
        (0.1, 0.1),
        ("0.1", 0.1),
    ],
)
def test_seconds(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "s", "-1s", "1M", "1 2", "inf", "nan", math.inf, math.nan, -1, True, None, "1h30m"]
)
def test_not_seconds(value: object) -> None:
    with pytest.raises(ValueError):
        parse_seconds(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 << 30, "10 GiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(0, 2**62))
def test_formatted_parses_back(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.06)
    assert parse_bytes(str(size)) == parse_bytes(size) == size


@given(st.integers(0, 2**20), st.sampled_from(["", "KiB", "MiB", "GiB"]))
def test_whole_multiples_are_exact(count: int, unit: str) -> None:
    size = count * 1024 ** ["", "KiB", "MiB", "GiB"].index(unit)
    assert parse_bytes(f"{count}{unit}") == size


@given(st.text(max_size=12), st.sampled_from([parse_bytes, parse_seconds]))
def test_anything_else_is_a_value_error(text: str, parse: Callable[[str], float]) -> None:
    with contextlib.suppress(ValueError):
        assert parse(text) >= 0
