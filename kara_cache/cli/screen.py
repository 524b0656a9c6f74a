"""What people and scripts see: tables on a terminal, JSON for scripts, progress on stderr."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from kara_cache.ufs.base import FileInfo
from kara_cache.wire import encode_info


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
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


def progress(total: int | None, label: str) -> tqdm[Any]:
    """A bar of bytes on stderr; silent where stderr is no terminal."""
    return tqdm(
        total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, disable=None
    )


def _name(info: FileInfo) -> str:
    return info.path + ("/" if info.is_dir and info.path != "/" else "")
