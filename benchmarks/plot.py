"""Small drawings as SVG, without a library: lines over a logarithmic axis, and bars around 1x."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

_COLOURS = ("#0b6e4f", "#d65f5f", "#4878cf", "#9a9a9a", "#b47cc7", "#e08214")
_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 34, 420, 190

Points = Sequence[tuple[float, float]]


def lines(title: str, across: str, series: Mapping[str, Points]) -> str:
    """Each series as a line; x is logarithmic, y begins at zero. The unit of y belongs in `title`."""
    xs = [x for points in series.values() for x, _ in points]
    top = max(y for points in series.values() for _, y in points) * 1.1 or 1.0
    low, high = math.log10(min(xs)), math.log10(max(xs))

    def at(x: float, y: float) -> tuple[float, float]:
        part = (math.log10(x) - low) / (high - low) if high > low else 0.5
        return _LEFT + part * _WIDTH, _TOP + _HEIGHT * (1 - y / top)

    parts = [*_sheet(title, _TOP + _HEIGHT + 62), *_scale(top)]
    parts += [_text(at(x, 0)[0], _TOP + _HEIGHT + 16, f"{x:,.0f}", "middle") for x in sorted(set(xs))]
    parts.append(_text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 32, across, "middle"))
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [at(x, y) for x, y in sorted(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(_LEFT + number * 150, _TOP + _HEIGHT + 54, name, "start", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def ratios(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """A row of bars for each group, from 1x to the right where we are ahead, to the left where not."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    bar, left, middle, decade = 9, 210, 300, 70
    height = _TOP + sum(bar * len(group) + 8 for group in groups.values()) + 26
    parts = list(_sheet(title, height))
    for power in (-1, 0, 1, 2):
        x = middle + power * decade
        shade = "#ddd" if power else "#555"
        parts.append(f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{height - 24}" stroke="{shade}"/>')
        parts.append(_text(x, height - 10, f"{10.0**power:g}x", "middle"))
    y = float(_TOP)
    for name, group in groups.items():
        parts.append(_text(left, y + bar * len(group) / 2 + 4, name, "end"))
        for label, value in group.items():
            end = middle + max(-1.2, min(2.4, math.log10(max(value, 1e-3)))) * decade
            colour = _COLOURS[labels.index(label) % len(_COLOURS)]
            x, width = min(middle, end), abs(end - middle)
            shown = f"<title>{escape(name)}, {escape(label)}: {value:.2f}x</title>"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width):.1f}" height="{bar - 1}" '
                f'fill="{colour}">{shown}</rect>'
            )
            y += bar
        y += 8
    for number, label in enumerate(labels):
        parts.append(_text(left + number * 75, 30, label, "start", _COLOURS[number % len(_COLOURS)]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def flame(title: str, stacks: Mapping[tuple[str, ...], int]) -> str:
    """A flame graph: calls from the bottom up, as wide as their part of the samples; details as tooltips."""
    total, width, row = sum(stacks.values()) or 1, 1000, 16
    levels: list[dict[tuple[str, ...], tuple[float, int]]] = []  # of each depth: start and samples by prefix
    at = 0
    for stack, count in sorted(stacks.items()):
        for depth in range(len(stack)):
            if depth == len(levels):
                levels.append({})
            start, before = levels[depth].get(stack[: depth + 1], (at, 0))
            levels[depth][stack[: depth + 1]] = (start, before + count)
        at += count
    height = 30 + row * len(levels)
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(8, 15, title, "start", size=13),
    ]
    for depth, found in enumerate(levels):
        y = height - row * (depth + 1)
        for stack, (start, count) in found.items():
            wide = width * count / total
            if wide < 0.5:
                continue
            name, x = escape(stack[-1]), width * start / total
            shade = f"hsl({20 + sum(map(ord, stack[-1])) % 30},80%,{62 + sum(map(ord, stack[-1])) % 12}%)"
            label = name if wide > 6.2 * len(stack[-1]) else escape(stack[-1][: int(wide / 6.2)])
            parts.append(
                f'<g><title>{name}: {count / total:.1%}</title><rect x="{x:.1f}" y="{y}" width="{wide:.1f}" '
                f'height="{row - 1}" fill="{shade}"/><text x="{x + 2:.1f}" y="{y + 11}">{label}</text></g>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _sheet(title: str, height: float) -> Iterator[str]:
    width = _LEFT + _WIDTH + 40
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        'font-family="sans-serif" font-size="11">'
    )
    yield f'<rect width="{width}" height="{height:.0f}" fill="white"/>'
    yield _text(8, 15, title, "start", size=13)


def _scale(top: float) -> Iterator[str]:
    for step in range(5):
        value, y = top * step / 4, _TOP + _HEIGHT * (1 - step / 4)
        yield f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(_LEFT - 6, y + 4, f"{value:,.3g}" if top < 1000 else f"{value:,.0f}", "end")


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
