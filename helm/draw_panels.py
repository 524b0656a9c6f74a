"""Draws a dashboard from a live Prometheus, for documents: there is no Grafana where this runs.

python helm/draw_panels.py cluster http://127.0.0.1:9090 docs/images/dashboard-cluster.png --minutes 5
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
from dashboards import DASHBOARDS, Panel

matplotlib.use("Agg")
from matplotlib import pyplot

_STEPS = 240
_COLUMNS = 3
_SERIES = 8  # of one panel that a legend has room for, the largest
_INTERVAL_S = 30  # of rates: clients hand in their counts every ten seconds
# Requests of which there are few; the readers' are what a picture is for.
_RARE = {"client_metrics", "mounts", "worker", "list", "load_progress", "list_loads", "submit_load", "end_load", "load",
         "handover", "page"}  # fmt: skip
_UNITS = {
    "Bps": "B/s",
    "bytes": "B",
    "s": "s",
    "percentunit": "%",
    "reqps": "/s",
    "ops": "/s",
    "currencyUSD": "USD",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dashboard", choices=DASHBOARDS)
    parser.add_argument("prometheus", metavar="URL")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    board = DASHBOARDS[options.dashboard]
    panels = [panel for _, _, row in board.rows for panel in row if panel.kind != "heatmap"]
    figures = [panel for panel in panels if panel.kind in ("stat", "gauge")]
    graphs = [panel for panel in panels if panel not in figures]
    rows = math.ceil(len(graphs) / _COLUMNS)
    figure = pyplot.figure(figsize=(15, 1.3 * bool(figures) + 2.9 * rows), layout="constrained")
    figure.suptitle(board.title, x=0.01, ha="left", fontsize=14)
    parts = figure.subfigures(2, 1, height_ratios=(1.3, 2.9 * rows)) if figures else (None, figure)
    if figures:
        for panel, axis in zip(figures, parts[0].subplots(1, len(figures)), strict=True):
            _draw(panel, axis, options.prometheus, options.minutes * 60)
    axes = parts[1].subplots(rows, _COLUMNS, squeeze=False)
    for axis in axes.flat[len(graphs) :]:
        axis.set_axis_off()
    for panel, axis in zip(graphs, axes.flat, strict=False):
        _draw(panel, axis, options.prometheus, options.minutes * 60)
    figure.savefig(options.out, dpi=75)


def _draw(panel: Panel, axis: Any, prometheus: str, seconds: float) -> None:
    axis.set_title(panel.title, fontsize=10, loc="left")
    scale = 100.0 if panel.unit == "percentunit" else 1.0
    series = [
        (_legend(legend, row["metric"]), row["values"])
        for legend, query in panel.queries.items()
        for row in _range(prometheus, query, seconds)
        if row["metric"].get("method") not in _RARE
    ]
    if panel.kind in ("stat", "gauge"):
        value = float(series[0][1][-1][1]) * scale if series else math.nan
        axis.text(
            0.5,
            0.45,
            _short(value, panel.unit),
            ha="center",
            va="center",
            fontsize=26,
            transform=axis.transAxes,
        )
        axis.set_axis_off()
        return
    series = [one for one in series if _mean(one[1])] or series  # what never happened is left out
    series = sorted(series, key=lambda one: -_mean(one[1]))[:_SERIES]
    end = max((float(values[-1][0]) for _, values in series), default=0.0)
    for legend, values in sorted(series, key=lambda one: one[0]):
        times, heights = _with_gaps(values, 3 * seconds / _STEPS)
        axis.plot(
            [at - end for at in times], [height * scale for height in heights], label=legend, linewidth=1.2
        )
    axis.set_xlabel("seconds", fontsize=8)
    axis.yaxis.set_major_formatter(lambda value, _: _short(value, panel.unit))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(-seconds, 0)
    axis.set_ylim(bottom=0)
    if any(legend for legend, _ in series):
        axis.legend(fontsize=7, loc="best", framealpha=0.6, ncols=1 if len(series) < 4 else 2)


def _with_gaps(values: list[Any], longest_s: float) -> tuple[list[float], list[float]]:
    """A line ends where nobody was there to be asked."""
    times: list[float] = []
    heights: list[float] = []
    for text, value in values:
        at = float(text)
        if times and at - times[-1] > longest_s:
            times.append(at)
            heights.append(math.nan)
        times.append(at)
        heights.append(float(value))
    return times, heights


def _mean(values: list[Any]) -> float:
    numbers = [float(value) for _, value in values if not math.isnan(float(value))]
    return sum(numbers) / len(numbers) if numbers else 0.0


def _range(prometheus: str, query: str, seconds: float) -> list[dict[str, Any]]:
    for name, value in {
        "$__rate_interval": f"{_INTERVAL_S}s",
        "$__range": f"{int(seconds)}s",
        "$price": "0.08",
    }.items():
        query = query.replace(name, value)
    query = re.sub(r'(\w+)=~"\$\w+"', r'\1=~".*"', query)
    end = time.time()
    arguments = {"query": query, "start": end - seconds, "end": end, "step": max(1.0, seconds / _STEPS)}
    with urllib.request.urlopen(
        f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(arguments)}"
    ) as answer:
        return list(json.load(answer)["data"]["result"])


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern)


def _short(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "s":
        return f"{value * 1e3:.3g} ms"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor and unit != "percentunit":
            return f"{value / factor:.3g} {letter}{_UNITS.get(unit, '')}"
    return f"{value:.3g} {_UNITS.get(unit, '')}"


if __name__ == "__main__":
    main()
