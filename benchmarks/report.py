"""The table on the screen, and the same as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rounds import MOST_FOREIGN
from benchmarks.table_row import Row, shown
from benchmarks.why import WHY

_INTRODUCTION = """# Benchmarks

Written by `make bench` (`python -m benchmarks`). Every figure is a ratio, or a difference, of two things
measured in the same rounds, alternately: the median over the rounds, and the smallest and largest.
Absolute values are below the table; they belong to this machine and this hour.
Checksums are on in every row; the rows called *control* fail the run when they are not.
Rows of data sets, beside LMDB and other formats, have a page of their own: [rows](benchmarks/rows.md).
"""


def table(rows: Sequence[Row]) -> str:
    lines = ["| what | target | measured | spread | verdict |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.target or '-'} | **{row.measured}** | {row.spread} | {row.verdict} |"
        for row in rows
    ]
    return "\n".join(lines)


def screen(rows: Sequence[Row]) -> str:
    width = max(len(row.what) for row in rows)
    lines = [f"{'what':{width}}  {'target':>10}  {'measured':>10}  {'spread':>17}  verdict"]
    lines += [
        f"{row.what:{width}}  {row.target or '-'!s:>10}  {row.measured:>10}  {row.spread:>17}  {row.verdict}"
        for row in rows
    ]
    return "\n".join(lines)


def markdown(rows: Sequence[Row], facts: dict[str, str], loader: str) -> str:
    noisy = [row for row in rows if row.foreign > MOST_FOREIGN]
    parts = [_INTRODUCTION, table(rows), "", "## What it was measured on", ""]
    parts += [f"- {name}: {value}" for name, value in {**facts, "loader": loader}.items()]
    parts += ["", "## Where a target is missed", ""]
    parts += [
        f"- {row.what}: {WHY.get(row.key, 'not explained yet')}" for row in rows if row.verdict == "MISSED"
    ] or ["Nowhere."]
    parts += ["", "## How quiet the machine was", "", _quiet(rows, noisy)]
    parts += ["", "## Absolute values (medians)", ""]
    for row in rows:
        if row.detail:
            parts.append(
                f"- {row.what}: "
                + ", ".join(f"{name} {shown(value, '')}" for name, value in row.detail.items())
            )
    return "\n".join(parts) + "\n"


def _quiet(rows: Sequence[Row], noisy: Sequence[Row]) -> str:
    retried = sum(row.retried for row in rows)
    text = f"A round in which others used more than {MOST_FOREIGN:.0%} of all cores ran again, "
    text += f"at most twice: {retried} did."
    if noisy:
        worst = max(noisy, key=lambda row: row.foreign)
        text += f" {len(noisy)} of {len(rows)} rows stayed above it in half of their rounds"
        text += f" (worst {worst.foreign:.0%}: {worst.what})."
    return text


def write(rows: Sequence[Row], facts: dict[str, str], loader: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, facts, loader)
    (out.parent / "benchmarks.md").write_text(text)
    (out / "latest.md").write_text(text)
    document = {"machine": {**facts, "loader": loader}, "rows": [row.document() for row in rows]}
    (out / "latest.json").write_text(json.dumps(document, indent=1) + "\n")
