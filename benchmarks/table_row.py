"""One line of the table: what was promised, what came out, how far the rounds differ."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace

from benchmarks.rounds import Rounds


@dataclass(frozen=True)
class Target:
    """`at_least` for ratios that should be large, otherwise the value is a limit."""

    value: float
    unit: str = "x"
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {shown(self.value, self.unit)}"

    def met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value


@dataclass(frozen=True)
class Row:
    """`values` has one entry a round; the median counts."""

    key: str  # stable name, for `why` and for comparing runs
    what: str
    values: list[float]
    target: Target | None
    unit: str = "x"
    detail: dict[str, float] = field(default_factory=dict)  # absolute medians, by name with unit
    case: str = ""  # which one it is of
    plot: tuple[str, str] = ("", "")  # title with the unit of y, and what x is; of `series`
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    foreign: float = 0.0
    retried: int = 0

    def of(self, rounds: Rounds) -> Row:
        """The same, with how quiet the machine was."""
        return replace(self, foreign=rounds.foreign, retried=rounds.retried)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "-"
        return "met" if self.target.met(self.median) else "MISSED"

    @property
    def measured(self) -> str:
        return shown(self.median, self.unit)

    @property
    def spread(self) -> str:
        return f"{shown(min(self.values), '')} - {shown(max(self.values), '')}"

    def document(self) -> dict[str, object]:
        return {
            "case": self.case,
            "key": self.key,
            "what": self.what,
            "target": None if self.target is None else str(self.target),
            "median": self.median,
            "unit": self.unit,
            "rounds": self.values,
            "verdict": self.verdict,
            "detail": self.detail,
            "series": self.series,
            "foreign_cpu": self.foreign,
            "retried_rounds": self.retried,
        }


def shown(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    gap = "" if unit in ("x", "") else " "
    return f"{value:,.{digits}f}{gap}{unit}"
