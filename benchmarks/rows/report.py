"""The tables as Markdown, the numbers as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.rows.cluster import ClusterResults
from benchmarks.rows.columns import COLUMNS
from benchmarks.rows.peers import OURS
from benchmarks.rows.plot import draw
from benchmarks.rows.results import Results
from benchmarks.rows.why import WHY


class RowFacts(Protocol):
    """What the report says of the rows."""

    @property
    def count(self) -> int: ...

    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class Recorded:
    """The same, read from a report."""

    count: int
    size: int


_INTRODUCTION = """# Rows, side by side

Written by `python -m benchmarks.rows --out docs/benchmarks`. The rows are made by
`benchmarks/rows/generate.py`: {count:,} JSON records, {size:,} bytes, {average:,} on average. Every format
has the same rows on the same disk, all in the kernel's memory, and runs in a process and an environment of
its own. A column goes round all formats before the next one begins; {rounds} rounds, every second one
backwards. After the first one only those ratios are measured again of which something was wanted: all of
them would take half an hour. What counts is the median of the ratios within each round. `kara_cache`
verifies every row that it reads; *mmap* is what Python can do with one file, offsets in memory and no
check.

How each column is measured, the better of two runs in a round (one for append and DataLoaders, and where a
run takes over 1 s; a run ends after 2 s, and what it read until then counts): **append** from the first row
until the format has closed its files, to a file system in memory, so that the disk is not what is measured.
**sequential** iterates. **random** is 20,000 single reads. **permutation** reads all rows in random
order, in batches of 256 where the format has them. **shuffled** is the format's own shuffled epoch:
chunks and blocks for litdata and MosaicML; all others, ours too, go through kara-storage's pool of 4,096
rows. **DataLoader** has 2 workers, batches of 256, and counts from when both have sent one; shuffled is a
true permutation where the format is map-style (ours is). Its cost for each row, pickling into a pipe, is
the same for all. **JSON** decodes each row, with msgspec or what the format brings.

LMDB hands out bytes here, as the others do. With its zero-copy buffers, which a loop that only asks for
their length never reads from, it gave 3,667k rows/s in sequence and 1,766k shuffled in an earlier run of
one round: three to four times ours. Decoders get its buffers.
"""


def markdown(
    results: Results, through: ClusterResults | None, rows: RowFacts, facts: Mapping[str, str], rounds: int
) -> str:
    average = rows.size // rows.count
    parts = [_INTRODUCTION.format(count=rows.count, size=rows.size, average=average, rounds=rounds)]
    parts += ["## kara_cache / the others", "", _ratio_table(results), ""]
    parts += ["More than 1 is faster than the other. *(smallest - largest of the rounds)*", ""]
    parts += ["![rows a second](rows.svg)", "", "## What was to be reached", "", _reach_table(results), ""]
    if through is not None:
        parts += ["## Through the cluster", "", through.markdown(), ""]
    parts += ["## Rows a second, in thousands (medians)", "", _rate_table(results), ""]
    parts += ["## Memory and disk", "", _size_table(results, rows), ""]
    parts += ["## Controls", "", *_control_lines(results), ""]
    if failed := _failure_lines(results):
        parts += ["## What could not be measured", "", *failed, ""]
    parts += ["## What it was measured on", ""]
    parts += [f"- {name}: {value}" for name, value in facts.items()]
    if results.foreign:
        usual, worst = statistics.median(results.foreign), max(results.foreign)
        parts.append(f"- others used {usual:.0%} of the cores in a round, at worst {worst:.0%}")
    return "\n".join(parts) + "\n"


def _ratio_table(results: Results) -> str:
    peers = [name for name in results.rates if name != OURS]
    lines = ["| column | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for column in COLUMNS:
        cells = [_spread(results.ratios(OURS, peer, column.key)) for peer in peers]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {column.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    return f"**{_short(statistics.median(ratios))}x** ({_short(min(ratios))} - {_short(max(ratios))})"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _reach_table(results: Results) -> str:
    lines = ["| column | against | wanted | measured | |", "|---|---|---|---|---|"]
    for column in COLUMNS:
        for peer, wanted in column.reach.items():
            ratios = results.ratios(OURS, peer, column.key)
            if ratios:
                verdict = "met" if statistics.median(ratios) >= wanted else "MISSED"
                lines.append(f"| {column.title} | {peer} | ≥ {wanted:g}x | {_spread(ratios)} | {verdict} |")
    missed = [column for column in COLUMNS if results.misses(OURS, column)]
    reasons = [f"- {column.title}: {WHY[column.key]}" for column in missed if column.key in WHY]
    return "\n".join([*lines, "", "Why the missed ones are missed:", "", *reasons] if reasons else lines)


def _rate_table(results: Results) -> str:
    measured = [column for column in COLUMNS if any(results.of(name, column.key) for name in results.rates)]
    lines = [
        "| | " + " | ".join(column.title for column in measured) + " |",
        "|---" * (len(measured) + 1) + "|",
    ]
    for name in results.rates:
        cells = [_thousands(results.median(name, column.key)) for column in measured]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _thousands(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate / 1000:,.0f}" if rate >= 100_000 else f"{rate / 1000:.1f}"


def _size_table(results: Results, rows: RowFacts) -> str:
    lines = [
        "| | bytes on disk / bytes of rows | peak memory of a sequential pass, MB | of it private, MB |",
        "|---|---|---|---|",
    ]
    for name, stored in results.stored_bytes.items():
        peak, private = results.peak_bytes.get(name), results.anonymous_bytes.get(name)
        lines.append(f"| {name} | {stored / rows.size:.2f} | {_megabytes(peak)} | {_megabytes(private)} |")
    lines.append("")
    lines.append("Pages of a mapped file count as memory; the kernel takes them back when it needs them.")
    return "\n".join(lines)


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.0f}"


def _control_lines(results: Results) -> list[str]:
    return [f"- {what}: {'yes' if good else '**NO**'}" for what, good in results.controls.items()]


def _failure_lines(results: Results) -> list[str]:
    return [
        f"- {name}, {column}: {why}"
        for name, columns in results.failed.items()
        for column, why in columns.items()
    ]


def write(
    results: Results,
    through: ClusterResults | None,
    rows: RowFacts,
    facts: dict[str, str],
    rounds: int,
    out: Path,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.md").write_text(markdown(results, through, rows, facts, rounds))
    (out / "rows.svg").write_text(draw(results))
    document = {
        "machine": facts,
        "rows": rows.count,
        "bytes": rows.size,
        "rounds": rounds,
        **results.document(),
        "cluster": None if through is None else through.document(),
    }
    (out / "rows.json").write_text(json.dumps(document, indent=1) + "\n")


def rewrite(out: Path) -> None:
    """The text and the drawing of a report, made anew from its numbers."""
    document = json.loads((out / "rows.json").read_text())
    through = document["cluster"] and ClusterResults.of_document(document["cluster"])
    rows = Recorded(document["rows"], document["bytes"])
    results, facts = Results.of_document(document), document["machine"]
    write(results, through, rows, facts, document["rounds"], out)
