"""`kara explain --slowest`: where the time of the slowest reads went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kara_cache.cli import screen
from kara_cache.quantity import format_bytes

_SHOWN = 0.05  # smaller parts of a read are not worth a word


def show(reads: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        screen.print_json(reads)
        return
    rows = [
        [
            f"{read['total_s'] * 1e3:.1f} ms",
            str(read["cause"]),
            _parts(read),
            time.strftime("%H:%M:%S", time.localtime(read["at"])),
            f"{read['path']} {format_bytes(int(read['length']))} at {read['start']}",
        ]
        for read in reads
    ]
    screen.print_table(rows, ["TOOK", "MOSTLY", "STAGES", "ENDED", "READ"])


def _parts(read: dict[str, Any]) -> str:
    total = float(read["total_s"]) or 1.0
    ranked = sorted(read["stages"].items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in ranked if seconds / total >= _SHOWN)
