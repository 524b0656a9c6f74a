"""The table on the screen, and the same as Markdown, JSON and drawings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import plot
from benchmarks.peers.all import READERS, SERVERS
from benchmarks.peers.peer import LENGTHS
from benchmarks.rounds import MOST_FOREIGN
from benchmarks.table_row import Row, shown
from benchmarks.why import why

_INTRODUCTION = """# Latest benchmarks

Written by `make bench`. Every figure is a ratio, or a difference, of two things measured in the same rounds,
alternately: the median over the rounds, and the smallest and largest. Absolute values are at the end; they
belong to this machine and this hour. Checksums are on in every row of ours; a *control* that fails fails the
run. How to read and to repeat it: [benchmarks](../benchmarks.md). Rows of data sets, beside LMDB and other
formats, have a page of their own: [rows](rows.md).
"""
_QUICK = """
**This was a run with `--quick`: tiny sizes, once, to show that everything runs. It measures nothing.**
"""
_MATRICES = ("peers", "servers")  # cases that have a table of their own


@dataclass(frozen=True)
class Report:
    rows: Sequence[Row]
    skipped: dict[str, str]  # what was not measured, and why
    facts: dict[str, str]
    quick: bool = False
    failed: Sequence[str] = ()  # cases that ended with an error

    @property
    def controls(self) -> list[Row]:
        return [row for row in self.rows if row.key.startswith("control")]

    @property
    def uncontrolled(self) -> list[str]:
        """Cases that measured something without a control that could have failed."""
        controlled = {row.case for row in self.controls}
        controlled |= set(_MATRICES)  # their peers have some each, where they count what they miss
        return [case for case in dict.fromkeys(row.case for row in self.rows) if case not in controlled]

    def problems(self) -> list[str]:
        """Why this run shows nothing, or less than it should; a target that is missed is none."""
        return [
            *(f"case {case} failed: {self.skipped.get(f'case {case}', '')}" for case in self.failed),
            *(
                f"a control failed: {row.what}: {row.measured}"
                for row in self.controls
                if row.verdict == "MISSED"
            ),
            *(f"case {case} has no control" for case in self.uncontrolled),
        ]

    @property
    def _headline(self) -> list[Row]:
        return [row for row in self.rows if row.case not in _MATRICES and row not in self.controls]

    def _of(self, case: str) -> list[Row]:
        return [row for row in self.rows if row.case == case and row not in self.controls]

    def screen(self) -> str:
        if not self.rows:
            return "nothing was measured: " + "; ".join(f"{k}: {v}" for k, v in self.skipped.items())
        width = max(len(row.what) for row in self.rows)
        lines = [f"{'what':{width}}  {'target':>10}  {'measured':>10}  {'spread':>17}  verdict"]
        lines += [
            f"{row.what:{width}}  {row.target or '-'!s:>10}  {row.measured:>10}  {row.spread:>17}  "
            + row.verdict
            for row in self.rows
        ]
        lines += [f"not measured: {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    def markdown(self) -> str:
        parts = [_INTRODUCTION, *([_QUICK] if self.quick else [])]
        if self._headline:
            parts += ["## Ratios", "", table(self._headline), ""]
        parts += [*self._peers(), *self._servers(), *self._drawn()]
        if self.skipped:
            parts += ["## Not measured here", ""]
            parts += [f"- {name}: {_one_line(reason)}" for name, reason in self.skipped.items()] + [""]
        parts += ["## Where a target is missed", "", *self._missed(), ""]
        if self.controls:
            parts += ["## Controls", "", table(self.controls), ""]
        parts += ["## What it was measured on", ""]
        parts += [f"- {name}: {value}" for name, value in self.facts.items()]
        parts += ["", "## How quiet the machine was", "", _quiet(self.rows), ""]
        parts += ["## Absolute values (medians)", "", *_absolute(self.rows)]
        return "\n".join(parts) + "\n"

    def _peers(self) -> Iterator[str]:
        rows = {row.key: row for row in self._of("peers")}
        if not rows:
            return
        yield "## Peers: time of a read, peer / ours, each through its own client in one process\n"
        yield "More than 1x: ours is faster. Warm, the same bytes, medians of the p50.\n"
        yield "![ratios](peers.svg)\n"
        yield f"| peer | {' | '.join(LENGTHS)} | what runs | ours |\n|---|{'---|' * (len(LENGTHS) + 2)}"
        for peer in READERS:
            cells = [_cell(rows.get(f"peer_{peer.key}_{label}")) for label in LENGTHS]
            if any(cell != "-" for cell in cells):
                yield f"| {peer.name} | {' | '.join(cells)} | {peer.what} | {peer.rival} |"
        yield ""

    def _servers(self) -> Iterator[str]:
        rows = self._of("servers")
        if not rows:
            return
        yield "## HTTP servers: requests a second, ours / theirs, by connections\n"
        yield "More than 1x: our worker is faster. One core each, the loader on the other one.\n"
        connections = sorted({int(row.key.rpartition("_")[2]) for row in rows})
        yield f"| server, size of files | {' | '.join(map(str, connections))} |"
        yield f"|---|{'---|' * len(connections)}"
        by_line: dict[str, dict[int, Row]] = {}
        for row in rows:
            line, _, count = row.key.rpartition("_")
            by_line.setdefault(line, {})[int(count)] = row
        for found in by_line.values():
            name = found[connections[0]].what.removeprefix("worker / ").partition(" files,")[0]
            yield f"| {name} | {' | '.join(_cell(found.get(count)) for count in connections)} |"
        yield ""
        yield from (f"- {peer.name}: {peer.what}" for peer in SERVERS)
        yield ""

    def _drawn(self) -> Iterator[str]:
        drawn = [row for row in self.rows if row.series]
        if drawn:
            yield "## How costs grow\n"
            yield from (f"![{row.plot[0]}]({row.key}.svg)\n" for row in drawn)

    def _missed(self) -> list[str]:
        missed = [row for row in self.rows if row.verdict == "MISSED"]
        reasons: dict[str, list[str]] = {}
        for row in missed:
            reasons.setdefault(why(row.key), []).append(f"{row.what} ({row.measured}{_cpu(row)})")
        return [f"- {'; '.join(names)}: {reason}" for reason, names in reasons.items()] or ["Nowhere."]

    def drawings(self) -> dict[str, str]:
        """SVG documents by the name of their file."""
        found = {f"{row.key}.svg": plot.lines(*row.plot, row.series) for row in self.rows if row.series}
        groups: dict[str, dict[str, float]] = {}
        for peer in READERS:
            for row in self._of("peers"):
                head, _, label = row.key.rpartition("_")
                if head == f"peer_{peer.key}":
                    groups.setdefault(peer.name, {})[label] = row.median
        if groups:
            found["peers.svg"] = plot.ratios("time of a read, peer / ours", groups)
        return found

    def document(self) -> dict[str, object]:
        rows = [row.document() for row in self.rows]
        return {"machine": self.facts, "quick": self.quick, "not_measured": self.skipped, "rows": rows}

    def write(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "latest.md").write_text(self.markdown())
        (out / "latest.json").write_text(json.dumps(self.document(), indent=1) + "\n")
        for name, drawing in self.drawings().items():
            (out / name).write_text(drawing)


def table(rows: Sequence[Row]) -> str:
    lines = ["| what | target | measured | spread | verdict |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.target or '-'} | **{row.measured}** | {row.spread} | {row.verdict} |"
        for row in rows
    ]
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"**{row.measured}** behind" if row.verdict == "MISSED" else row.measured


def _cpu(row: Row) -> str:
    """Who spends how much, of a peer."""
    if "ours client's CPU us" not in row.detail:
        return ""
    sides = {
        who: " + ".join(shown(row.detail[f"{who} {side}'s CPU us"], "") for side in ("client", "server"))
        for who in ("ours", "peer")
    }
    return f"; CPU us a read, client + server: ours {sides['ours']}, theirs {sides['peer']}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _quiet(rows: Sequence[Row]) -> str:
    noisy = [row for row in rows if row.foreign > MOST_FOREIGN]
    retried = sum(row.retried for row in rows)
    text = f"A round in which others used more than {MOST_FOREIGN:.0%} of all cores ran again, "
    text += f"at most twice: {retried} did."
    if noisy:
        worst = max(noisy, key=lambda row: row.foreign)
        text += f" {len(noisy)} of {len(rows)} rows stayed above it in half of their rounds"
        text += f" (worst {worst.foreign:.0%}: {worst.what})."
    return text


def _absolute(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.detail:
            yield f"- {row.what}: " + ", ".join(
                f"{name} {shown(value, '')}" for name, value in row.detail.items()
            )
