"""What the rounds gave: rates by format and column, and ratios within each round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rows.columns import Column


@dataclass
class Results:
    """Rows a second; a round in which a format failed has no entry for it."""

    rates: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)  # format, column, round
    stored_bytes: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, float] = field(default_factory=dict)
    anonymous_bytes: dict[str, float] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)  # format, column: why
    foreign: list[float] = field(default_factory=list)  # part of all cores that others used, each round
    controls: dict[str, bool] = field(default_factory=dict)

    def add(self, name: str, column: str, number: int, answer: dict[str, float]) -> None:
        rate = answer["rows"] / answer["seconds"]
        self.rates.setdefault(name, {}).setdefault(column, {})[number] = rate

    def fail(self, name: str, column: str, why: str) -> None:
        self.failed.setdefault(name, {})[column] = why

    def of(self, name: str, column: str) -> list[float]:
        return list(self.rates.get(name, {}).get(column, {}).values())

    def median(self, name: str, column: str) -> float | None:
        found = self.of(name, column)
        return statistics.median(found) if found else None

    def ratios(self, a: str, b: str, column: str) -> list[float]:
        """a / b in each round that has both."""
        ours = self.rates.get(a, {}).get(column, {})
        theirs = self.rates.get(b, {}).get(column, {})
        return [rate / theirs[number] for number, rate in ours.items() if number in theirs]

    def misses(self, ours: str, column: Column) -> dict[str, float]:
        """The ratios that fall short of what the column is to reach, by peer."""
        found = {}
        for peer, wanted in column.reach.items():
            ratios = self.ratios(ours, peer, column.key)
            if ratios and statistics.median(ratios) < wanted:
                found[peer] = statistics.median(ratios)
        return found

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> Results:
        """What `document` was made of."""
        rates = {
            name: {column: dict(enumerate(rounds)) for column, rounds in columns.items()}
            for name, columns in document["rows_per_second"].items()
        }
        return cls(
            rates=rates,
            stored_bytes=document["stored_bytes"],
            peak_bytes=document["peak_resident_bytes"],
            anonymous_bytes=document["anonymous_bytes"],
            failed=document["failed"],
            foreign=document["foreign_cpu"],
            controls=document["controls"],
        )

    def document(self) -> dict[str, object]:
        return {
            "rows_per_second": {
                name: {column: list(rounds.values()) for column, rounds in columns.items()}
                for name, columns in self.rates.items()
            },
            "stored_bytes": self.stored_bytes,
            "peak_resident_bytes": self.peak_bytes,
            "anonymous_bytes": self.anonymous_bytes,
            "failed": self.failed,
            "foreign_cpu": self.foreign,
            "controls": self.controls,
        }
