"""Sizes and durations as people write them: `100GiB`, `1_000`, `7d`, `250ms`."""

from __future__ import annotations

import re
from decimal import Decimal

_BYTES: dict[str, int] = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _BYTES[f"{_letter}b"] = 1000**_power
    _BYTES[f"{_letter}ib"] = _BYTES[f"{_letter}i"] = 1024**_power  # Ki, Mi ... as Kubernetes writes them
_SECONDS = {
    "ms": Decimal("0.001"),
    "": Decimal(1),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86_400),
    "w": Decimal(604_800),
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_MAX_CHARACTERS = 40
_MAX_BYTES = 2**63 - 1
_MAX_SECONDS = 100 * 366 * 86_400
_BYTES_FORMS = (
    "a whole number of bytes, or one with KiB, MiB, GiB, TiB, PiB (1024) or kB, MB, GB, TB, PB (1000)"
)
_SECONDS_FORMS = "a number of seconds, or one with ms, s, m, h, d or w"


def parse_bytes(value: str | int) -> int:
    """Bytes, 0 .. 2**63 - 1, fractions rounded down. `G` alone is refused: tools differ on what it means.

    Raises ValueError naming the accepted forms.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        number, unit = _split(value, _BYTES_FORMS)
        if unit.lower() not in _BYTES:
            hint = f": {unit}iB (1024) or {unit}B (1000)?" if unit.lower() in "kmgtp" else ""
            raise ValueError(f"size {value!r}: unknown unit {unit!r}{hint or f'; want {_BYTES_FORMS}'}")
        size = int(number * _BYTES[unit.lower()])
    if not 0 <= size <= _MAX_BYTES:
        raise ValueError(f"size {value!r}: want 0 .. 2**63 - 1 bytes")
    return size


def parse_seconds(value: str | float) -> float:
    """Seconds, 0 up to a hundred years. Raises ValueError naming the accepted forms."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        number, unit = _split(value, _SECONDS_FORMS)
        if unit not in _SECONDS:
            raise ValueError(f"duration {value!r}: unknown unit {unit!r}; want {_SECONDS_FORMS}")
        seconds = float(number * _SECONDS[unit])
    if not 0 <= seconds <= _MAX_SECONDS:  # not true for nan either
        raise ValueError(f"duration {value!r}: want 0 .. 100 years")
    return seconds


def format_bytes(size: int) -> str:
    """`512 B`, `64 MiB`, `3.2 GiB`: for people; whole multiples come out exact and parse back."""
    for power, unit in ((5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(size) >= 1024**power:
            whole, rest = divmod(size, 1024**power)
            return f"{size / 1024**power:.1f} {unit}" if rest else f"{whole} {unit}"
    return f"{size} B"


def _split(value: object, forms: str) -> tuple[Decimal, str]:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: want {forms}")
    match = _QUANTITY.fullmatch(value) if len(value) <= _MAX_CHARACTERS else None
    if match is None:
        raise ValueError(f"{value[:_MAX_CHARACTERS]!r}: want {forms}")
    return Decimal(match[1].replace("_", "")), match[2]
