"""What people and scripts see: tables on a terminal, JSON for scripts, progress on stderr."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from tqdm import tqdm

from kara_cache.ufs.base import FileInfo
from kara_cache.wire import encode_info


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Columns as wide as their widest cell; those of numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [
        bool(rows) and all(cell[:1].isdigit() or cell == "-" for cell in column[1:]) for column in columns
    ]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        print("  ".join(cells).rstrip())


def print_entry(info: FileInfo, *, long: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(encode_info(info), ensure_ascii=False))
    elif long:
        print(f"{'-' if info.is_dir else info.size:>14}  {local_time(info.mtime):19}  {_name(info)}")
    else:
        print(_name(info))


def local_time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


class Progress(Protocol):
    def update(self, count: int, /) -> object: ...


def progress(total: int, label: str) -> tqdm[Any]:
    """A bar of bytes on stderr; silent where stderr is no terminal."""
    return tqdm(
        total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, disable=None
    )


def count(label: str, total: int, unit: str) -> tqdm[Any]:
    """The same for things that are counted."""
    return tqdm(total=total, desc=label, unit=f" {unit}", file=sys.stderr, disable=None)


def _name(info: FileInfo) -> str:
    return info.path + ("/" if info.is_dir and info.path != "/" else "")
