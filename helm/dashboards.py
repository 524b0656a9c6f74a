"""Makes the Grafana dashboards of the chart: python helm/dashboards.py [--check]

Each is a list of rows of panels; places on the grid, ids and the frame around them follow from it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "kara-cache" / "files" / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24  # columns of Grafana's grid


@dataclass(frozen=True)
class Panel:
    """`queries`: legend -> PromQL."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"  # or stat, gauge, heatmap, table
    says: str = ""
    width: int = 0  # 0: an equal part of the row
    steps: tuple[tuple[str, float | None], ...] = ()  # colour from this value on
    stack: bool = False


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    rows: tuple[tuple[str, int, tuple[Panel, ...]], ...]  # heading, height, panels
    variables: tuple[dict[str, Any], ...] = field(default=())


def per(query: str) -> str:
    return f"rate({query}[$__rate_interval])"


def quantile(q: float, histogram: str, by: str = "le", labels: str = "") -> str:
    return f"histogram_quantile({q}, sum by ({by}) (rate({histogram}_bucket{labels}[$__rate_interval])))"


def label_values(name: str, query: str, label: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": text,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values({query}, {label})", "refId": name},
        "definition": f"label_values({query}, {label})",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


_GOOD_RATIO = (("red", None), ("orange", 0.5), ("green", 0.9))
_BAD_RATIO = (("green", None), ("orange", 0.01), ("red", 0.05))
_HIT = 'sum(rate(kara_worker_page_reads_total{result="hit"}[$__rate_interval])) / sum(rate(kara_worker_page_reads_total[$__rate_interval]))'
_SAVED = (
    "sum(rate(kara_worker_read_bytes_total[$__rate_interval])) "
    '+ (sum(rate(kara_client_read_bytes_total{kind="local"}[$__rate_interval])) or vector(0)) '
    "- sum(rate(kara_worker_store_read_bytes_total[$__rate_interval]))"
)
_W = 'instance=~"$worker"'
_M = 'mount=~"$mount"'

CLUSTER = Dashboard(
    "kara-cluster",
    "kara_cache / Cluster",
    (
        (
            "",
            5,
            (
                Panel("Pages from the cache", {"": _HIT}, "percentunit", "gauge", steps=_GOOD_RATIO,
                      says="Of the pages that were read, those that lay on SSD."),
                Panel("Bytes from the cache", {"": "kara:byte_hit_ratio:rate5m"}, "percentunit", "gauge",
                      steps=_GOOD_RATIO, says="Of the bytes that were sent, those that came from pages."),
                Panel("Workers", {"": "count(kara_worker_lease_held == 1) or count(kara_worker_page_store_pages)"},
                      kind="stat", says="That hold a lease, or that answer where there is no etcd."),
                Panel("Reads with a detour", {"": "kara:client_fallback_ratio:rate5m or vector(0)"}, "percentunit",
                      "stat", steps=_BAD_RATIO, says="A worker failed and another owner or the store answered."),
                Panel("Throughput", {"": f"sum({per('kara_worker_read_bytes_total')})"}, "Bps", "stat"),
                Panel("Egress saved in this range", {"": "sum(increase(kara_worker_read_bytes_total[$__range])) - sum(increase(kara_worker_store_read_bytes_total[$__range]))"},
                      "bytes", "stat", says="What the store did not have to send."),
                Panel("Money saved in this range", {"": "(sum(increase(kara_worker_read_bytes_total[$__range])) - sum(increase(kara_worker_store_read_bytes_total[$__range]))) / 1e9 * $price"},
                      "currencyUSD", "stat", says="At the price for each GB above."),
            ),
        ),
        (
            "Reads",
            8,
            (
                Panel("Hit ratio", {"pages": _HIT, "bytes": "kara:byte_hit_ratio:rate5m"}, "percentunit"),
                Panel("Bytes to readers", {
                    "from {{source}}": f"sum by (source) ({per('kara_worker_read_bytes_total')})",
                    "read locally": 'sum(rate(kara_client_read_bytes_total{kind="local"}[$__rate_interval]))',
                }, "Bps", stack=True, says="Local reads take pages from the SSD of the same host; workers send nothing."),
                Panel("Egress of the stores", {
                    "fetched": f"sum({per('kara_worker_store_read_bytes_total')})", "saved": f"clamp_min({_SAVED}, 0)",
                }, "Bps", stack=True),
            ),
        ),
        (
            "Latency on the workers",
            8,
            (
                Panel("Time of a read", {"": "sum by (le) (increase(kara_worker_request_seconds_bucket{method=\"read\",result=\"ok\"}[$__rate_interval]))"},
                      "s", "heatmap", width=12),
                Panel("Percentiles by method", {
                    "{{method}} p50": quantile(0.5, "kara_worker_request_seconds", "le, method", '{result="ok"}'),
                    "{{method}} p99": quantile(0.99, "kara_worker_request_seconds", "le, method", '{result="ok"}'),
                }, "s", width=12),
            ),
        ),
        (
            "Capacity",
            8,
            (
                Panel("Pages on SSD", {"used": "sum(kara_worker_page_store_bytes)",
                                       "capacity": "sum(kara_worker_page_store_capacity_bytes)"}, "bytes"),
                Panel("Fullness of each worker", {"{{instance}}": "kara_worker_page_store_bytes / kara_worker_page_store_capacity_bytes"},
                      "percentunit"),
                Panel("Requests", {"{{method}} {{result}}": f"sum by (method, result) ({per('kara_worker_requests_total')})"},
                      "reqps"),
            ),
        ),
    ),
    (
        {
            "name": "price", "label": "USD for each GB of egress", "type": "textbox", "query": "0.08",
            "current": {"text": "0.08", "value": "0.08"},
        },
    ),
)  # fmt: skip

WORKER = Dashboard(
    "kara-worker",
    "kara_cache / Worker",
    (
        (
            "Requests",
            8,
            (
                Panel("Requests", {"{{instance}} {{method}}": f"sum by (instance, method) (rate(kara_worker_requests_total{{{_W}}}[$__rate_interval]))"}, "reqps"),
                Panel("Bytes sent", {"{{instance}} {{source}}": f"sum by (instance, source) (rate(kara_worker_read_bytes_total{{{_W}}}[$__rate_interval]))"}, "Bps", stack=True),
                Panel("p99 of a read", {"{{instance}}": quantile(0.99, "kara_worker_request_seconds", "le, instance", f'{{method="read",result="ok",{_W}}}')}, "s"),
            ),
        ),
        (
            "Pages",
            8,
            (
                Panel("Pages read, by where they were", {"{{result}}": f"sum by (result) (rate(kara_worker_page_reads_total{{{_W}}}[$__rate_interval]))"}, "ops", stack=True,
                      says="join: waited for another reader's fill."),
                Panel("Pages that left", {"{{reason}}": f"sum by (reason) (rate(kara_worker_evictions_total{{{_W}}}[$__rate_interval])) or vector(0)"}, "ops"),
                Panel("Pages not admitted", {"{{reason}}": f"sum by (reason) (rate(kara_worker_rejections_total{{{_W}}}[$__rate_interval])) or vector(0)"}, "ops",
                      says="policy: the guard against scans. queue_full: the disk is slower than the store."),
            ),
        ),
        (
            "State",
            8,
            (
                Panel("Fills running", {"{{instance}}": f"kara_worker_fills_running{{{_W}}}"}),
                Panel("Connections", {"{{instance}}": f"kara_worker_connections{{{_W}}}"}),
                Panel("Lease held", {"{{instance}}": f"kara_worker_lease_held{{{_W}}}"}),
                Panel("Faults", {
                    "{{instance}} disk": f"rate(kara_worker_disk_errors_total{{{_W}}}[$__rate_interval])",
                    "{{instance}} corrupt {{where}}": f"rate(kara_worker_corrupt_pages_total{{{_W}}}[$__rate_interval])",
                }, "ops"),
            ),
        ),
    ),
    (label_values("worker", "kara_worker_page_store_pages", "instance", "Worker"),),
)  # fmt: skip

MOUNTS = Dashboard(
    "kara-mounts",
    "kara_cache / Mounts and data sets",
    (
        (
            "Cache",
            8,
            (
                Panel("Bytes from the cache", {"{{mount}}": f'sum by (mount) (rate(kara_worker_read_bytes_total{{source="cache",{_M}}}[$__rate_interval])) / sum by (mount) (rate(kara_worker_read_bytes_total{{{_M}}}[$__rate_interval]))'}, "percentunit"),
                Panel("Bytes to readers", {"{{mount}}": f"sum by (mount) (rate(kara_worker_read_bytes_total{{{_M}}}[$__rate_interval]))"}, "Bps", stack=True),
                Panel("Bytes fetched from the store", {"{{mount}}": f"sum by (mount) (rate(kara_worker_store_read_bytes_total{{{_M}}}[$__rate_interval]))"}, "Bps", stack=True),
            ),
        ),
        (
            "Store",
            8,
            (
                Panel("Requests", {"{{mount}} {{verb}}": f"sum by (mount, verb) (rate(kara_worker_store_requests_total{{{_M}}}[$__rate_interval]))"}, "reqps"),
                Panel("Mean time of a request", {"{{mount}} {{verb}}": f"sum by (mount, verb) (rate(kara_worker_store_seconds_total{{{_M}}}[$__rate_interval])) / sum by (mount, verb) (rate(kara_worker_store_requests_total{{{_M}}}[$__rate_interval]))"}, "s"),
                Panel("Requests that failed", {"{{mount}}": f'sum by (mount) (rate(kara_worker_store_requests_total{{result="error",{_M}}}[$__rate_interval])) or vector(0)'}, "reqps"),
            ),
        ),
    ),
    (label_values("mount", "kara_worker_store_requests_total", "mount", "Mount"),),
)  # fmt: skip

TRAINING = Dashboard(
    "kara-training",
    "kara_cache / Training jobs",
    (
        (
            "What jobs see",
            8,
            (
                Panel("Time of a read", {
                    "p50": quantile(0.5, "kara_client_read_seconds"),
                    "p99": quantile(0.99, "kara_client_read_seconds"),
                    "batch p50": quantile(0.5, "kara_client_batch_seconds"),
                }, "s", says="Measured in the training processes, detours included."),
                Panel("Time spent waiting for data", {
                    "reads": "sum(rate(kara_client_read_seconds_sum[$__rate_interval]))",
                    "batches": "sum(rate(kara_client_batch_seconds_sum[$__rate_interval]))",
                }, "none", says="Seconds of waiting in each second, over all threads of all jobs."),
                Panel("Bytes, by where they came from", {"{{kind}}": "sum by (kind) (rate(kara_client_read_bytes_total[$__rate_interval]))"}, "Bps", stack=True,
                      says="local: pages of a worker on the same host. store: past the cache."),
            ),
        ),
        (
            "Detours",
            8,
            (
                Panel("Reads", {"{{kind}}": "sum by (kind) (rate(kara_client_reads_total[$__rate_interval]))"}, "ops"),
                Panel("Fallbacks by reason", {"{{kind}}": "sum by (kind) (rate(kara_client_fallbacks_total[$__rate_interval])) or vector(0)"}, "ops"),
                Panel("Read ahead", {"{{kind}}": "sum by (kind) (rate(kara_client_read_ahead_total[$__rate_interval]))"}, "Bps",
                      says="Bytes fetched in advance, used, and thrown away."),
            ),
        ),
    ),
)  # fmt: skip

LOADS = Dashboard(
    "kara-loads",
    "kara_cache / Load jobs",
    (
        (
            "",
            5,
            (
                Panel("Running", {"": "sum(kara_load_jobs_running)"}, kind="stat"),
                Panel("Succeeded in this range", {"": 'sum(increase(kara_load_jobs_total{state="SUCCEEDED"}[$__range]))'}, kind="stat"),
                Panel("Failed in this range", {"": 'sum(increase(kara_load_jobs_total{state="FAILED"}[$__range]))'}, kind="stat", steps=(("green", None), ("red", 1))),
                Panel("Taken over in this range", {"": "sum(increase(kara_load_takeovers_total[$__range]))"}, kind="stat", says="Their coordinating worker was gone."),
            ),
        ),
        (
            "Progress",
            8,
            (
                Panel("Pages", {"{{result}}": "sum by (result) (rate(kara_load_pages_total[$__rate_interval]))"}, "ops", stack=True, says="present: were there already."),
                Panel("Bytes fetched", {"{{instance}}": "sum by (instance) (rate(kara_load_fetched_bytes_total[$__rate_interval]))"}, "Bps", stack=True),
                Panel("Requests to stores", {"": "sum(rate(kara_load_store_requests_total[$__rate_interval]))"}, "reqps"),
                Panel("Pages that failed", {"{{reason}}": "sum by (reason) (rate(kara_load_failed_pages_total[$__rate_interval])) or vector(0)"}, "ops"),
            ),
        ),
    ),
)  # fmt: skip

DASHBOARDS = {"loads": LOADS, "cluster": CLUSTER, "worker": WORKER, "mounts": MOUNTS, "training": TRAINING}


def document(board: Dashboard) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for heading, height, row in board.rows:
        if heading:
            panels.append(
                {"id": len(panels) + 1, "type": "row", "title": heading, "collapsed": False, "panels": [],
                 "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}}
            )  # fmt: skip
            y += 1
        x = 0
        for number, panel in enumerate(row):
            width = panel.width or (_WIDTH - x) // (len(row) - number)
            place = {"x": x, "y": y, "w": width, "h": height}
            panels.append(_panel(panel, len(panels) + 1, place))
            x += width
        y += height
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["kara_cache"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "tags": ["kara_cache"], "title": "kara_cache", "asDropdown": True,
                   "icon": "external link", "includeVars": False, "keepTime": True, "targetBlank": False,
                   "tooltip": "", "url": ""}],
        "templating": {"list": [_datasource(), *board.variables]},
        "panels": panels,
    }  # fmt: skip


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1,
            "current": {"text": "default", "value": "default"}}  # fmt: skip


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    steps = [{"color": color, "value": value} for color, value in panel.steps or (("green", None),)]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {}
    if panel.unit == "percentunit":
        defaults |= {"min": 0, "max": 1}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stack else "none", "group": "A"}
        defaults["custom"] = {"fillOpacity": 20 if panel.stack else 5, "lineWidth": 1, "showPoints": "never",
                              "stacking": stacking}  # fmt: skip
        options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                   "tooltip": {"mode": "multi", "sort": "desc"}}  # fmt: skip
    elif panel.kind in ("stat", "gauge"):
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if panel.kind == "stat":
            options |= {"graphMode": "area", "colorMode": "value"}
    elif panel.kind == "heatmap":
        options = {
            "calculate": False,
            "yAxis": {"unit": panel.unit},
            "color": {"mode": "scheme", "scheme": "Blues"},
        }
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legend or ("{{le}}" if panel.kind == "heatmap" else "__auto"),
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        }
        for index, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        **({"description": panel.says} if panel.says else {}),
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def main() -> int:
    wrong = []
    for name, board in DASHBOARDS.items():
        target = TARGET / f"{name}.json"
        text = json.dumps(document(board), indent=1, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv[1:]:
            TARGET.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            wrong.append(str(target))
    for path in wrong:
        print(f"{path}: not made from today's helm/dashboards.py: run it", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
