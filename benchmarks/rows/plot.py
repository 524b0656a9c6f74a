"""Rows a second as a drawing: one group of bars for each column, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from benchmarks.rows.columns import COLUMNS, Column
from benchmarks.rows.results import Results

_COLOURS = ("#0b6e4f", "#9a9a9a", "#4878cf", "#d65f5f", "#b47cc7", "#c4ad66", "#77bedb", "#e08214")
_LEFT, _TOP, _HEIGHT, _BAR, _GAP, _LEGEND = 64, 30, 300, 11, 22, 120
_LEAST, _MOST = 1e3, 1e7


def draw(results: Results) -> str:
    """An SVG document."""
    names = list(results.rates)
    columns = [column for column in COLUMNS if any(results.of(name, column.key) for name in names)]
    group = _BAR * len(names) + _GAP
    width, height = _LEFT + group * len(columns) + 120, _TOP + _HEIGHT + _LEGEND
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="13">rows a second, medians (logarithmic)</text>',
        *_scale(width),
    ]
    for place, column in enumerate(columns):
        parts += _bars(results, names, column, _LEFT + place * group + _GAP / 2)
    parts += _legend(names, _TOP + _HEIGHT + 92)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _y(rate: float) -> float:
    part = math.log10(max(rate, _LEAST) / _LEAST) / math.log10(_MOST / _LEAST)
    return _TOP + _HEIGHT * (1 - min(1.0, part))


def _scale(width: int) -> Iterator[str]:
    for power in range(3, 8):
        y = _y(10.0**power)
        label = f"{10 ** (power - 3):,}k"
        yield f'<line x1="{_LEFT}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _bars(results: Results, names: list[str], column: Column, x: float) -> Iterator[str]:
    for place, name in enumerate(names):
        rate = results.median(name, column.key)
        if rate is None:
            continue
        y = _y(rate)
        height = _TOP + _HEIGHT - y
        yield (
            f'<rect x="{x + place * _BAR:.1f}" y="{y:.1f}" width="{_BAR - 1}" height="{height:.1f}" '
            f'fill="{_COLOURS[place % len(_COLOURS)]}"><title>{escape(name)}: {rate:,.0f}</title></rect>'
        )
    middle, y = x + _BAR * len(names) / 2, _TOP + _HEIGHT + 12
    yield f'<text transform="translate({middle:.1f},{y}) rotate(20)">{escape(column.title)}</text>'


def _legend(names: list[str], y: int) -> Iterator[str]:
    x = _LEFT
    for place, name in enumerate(names):
        yield f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{_COLOURS[place % len(_COLOURS)]}"/>'
        yield f'<text x="{x + 14}" y="{y}">{escape(name)}</text>'
        x += 30 + 7 * len(name)
