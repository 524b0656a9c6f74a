"""Rows as people and scripts read them: JSON where it is JSON, else what can be shown of it."""

from __future__ import annotations

import json
import unicodedata
from base64 import b64encode
from typing import Protocol

import msgspec

_HEX_BYTES = 16  # a line of a dump
_MAX_DUMP_BYTES = 64 << 10  # 4096 lines; nobody reads on from there


class Rows(Protocol):
    """What is looked at: bytes by number. Raises FormatError for a damaged row."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


class MsgpackRows:
    """Rows of msgpack as JSON; bytes in them are base64."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        return msgpack_as_json(self._rows[index])


def msgpack_as_json(row: bytes) -> bytes:
    """The row itself where it is no msgpack, or nothing that JSON has a word for."""
    try:
        return msgspec.json.encode(msgspec.msgpack.decode(row))
    except (msgspec.MsgspecError, TypeError, ValueError):
        return row


def row_line(row: bytes) -> str:
    """One line of JSON: the row itself if it is one; else its text as a string, or `{"base64": ...}`."""
    try:
        text = row.decode()
    except UnicodeDecodeError:
        return json.dumps({"base64": b64encode(row).decode()})
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value, separators=(",", ":"))


def row_lines(row: bytes) -> list[str]:
    """For a screen: indented JSON, the lines of a text, or a hexadecimal dump."""
    try:
        text = row.decode()
    except UnicodeDecodeError:
        return _dump(row)
    try:
        return json.dumps(json.loads(text), indent=4, ensure_ascii=False).split("\n")
    except (ValueError, RecursionError):
        return text.split("\n")


def _dump(row: bytes) -> list[str]:
    lines = []
    for start in range(0, min(len(row), _MAX_DUMP_BYTES), _HEX_BYTES):
        piece = row[start : start + _HEX_BYTES]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{start:08x}  {piece.hex(' '):{3 * _HEX_BYTES}} {shown}")
    if len(row) > _MAX_DUMP_BYTES:
        lines.append(f"... {len(row) - _MAX_DUMP_BYTES} bytes more")
    return lines


def cells(character: str) -> int:
    """How many columns of a terminal it takes."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width(text: str) -> int:
    return len(text) if text.isascii() else sum(map(cells, text))


def shown(text: str) -> str:
    """Without what a terminal would obey, or cannot be sent."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "    "
        if c == "\t"
        else c
        if unicodedata.category(c) not in ("Cc", "Cs", "Cn", "Zl", "Zp")
        else "\ufffd"
        for c in text
    )


def cut(text: str, start: int, columns: int) -> str:
    """The columns [start, start + columns) of a line; half of a wide character is a space."""
    if columns <= 0:
        return ""
    if text.isascii():
        return text[start : start + columns]
    found: list[str] = []
    at, stop = 0, start + columns
    for character in text:
        size = cells(character)
        if size and at >= stop:
            break
        if not size:  # belongs to the character before it
            found.append(character if found and found[-1] != " " else "")
        elif at < start:
            found.append(" " * max(0, at + size - start))
        else:
            found.append(character if at + size <= stop else " ")
        at += size
    return "".join(found)
