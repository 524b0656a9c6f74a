"""Rows beside those formats of which a ratio was wanted: `benchmarks.rows` with a third of its rows.

All formats, and a gigabyte, are `make bench-rows`, and have a page of their own.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

from benchmarks.cases.commands import run_command
from benchmarks.rows.cluster import DISK, NETWORK, SAME_HOST, TARGETS, WANTED
from benchmarks.rows.columns import COLUMNS, Column
from benchmarks.rows.peers import LIMIT, LMDB, OURS, PREDECESSOR
from benchmarks.rows.results import Results
from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target

PEERS = {"limit": LIMIT, "lmdb": LMDB, "predecessor": PREDECESSOR}
PLACES = {"host": SAME_HOST, "tcp": NETWORK}
_ROWS = 120_000
_MINUTES = 4.0  # no round begins after them, and none through the cluster after a third of that


def run(scene: Scene) -> list[Row]:
    if importlib.util.find_spec("torch") is None:
        scene.skipped["rows"] = "torch is not installed"
        return []
    out = scene.home / "rows"
    much = ["--quick"] if scene.settings.tiny else ["--rows", str(_ROWS), "--minutes", str(_MINUTES)]
    only = [word for name in (OURS, *PEERS.values()) for word in ("--only", name)]
    places = ("--home", str(scene.home), "--out", str(out))
    run_command("rows", *much, *only, "--rounds", str(min(3, scene.settings.rounds)), *places)
    document = json.loads((out / "rows.json").read_text())
    for name, columns in document["failed"].items():
        for column, why in columns.items():
            scene.skipped[f"rows: {name}, {column}"] = why
    local, cluster = Results.of_document(document), Results.of_document(document["cluster"])
    return [*_local(local), *_cluster(cluster), *_controls(document)]


def _local(found: Results) -> Iterator[Row]:
    for column in COLUMNS:
        for key, peer in PEERS.items():
            values = found.ratios(OURS, peer, column.key)
            if wanted := column.reach.get(peer) if values else None:
                what = f"rows, {column.title}: kara_cache / {peer}, rows a second"
                yield Row(
                    _key(column, key), what, values, Target(wanted), detail=_detail(found, column, OURS, peer)
                )


def _cluster(found: Results) -> Iterator[Row]:
    for column in (one for one in COLUMNS if one.key in TARGETS):
        for key, place in PLACES.items():
            if values := found.ratios(place, DISK, column.key):
                what = f"rows, {column.title}: {place} / {DISK}, rows a second"
                yield Row(
                    _key(column, key),
                    what,
                    values,
                    Target(WANTED),
                    detail=_detail(found, column, place, DISK),
                )


def _key(column: Column, beside: str) -> str:
    """With one underscore before each part of which there may be a reason: `why.why` cuts there."""
    return f"rows_{column.key.replace('_', '-')}_{beside}"


def _detail(found: Results, column: Column, *names: str) -> dict[str, float]:
    return {f"{name}, rows/s": found.median(name, column.key) or 0.0 for name in names}


def _controls(document: dict[str, Any]) -> Iterator[Row]:
    right, cluster = document["controls"], document["cluster"]
    what = "control: rows: formats that give the bytes that were generated, of all"
    yield Row("control_rows_bytes", what, [sum(right.values()) / len(right)], Target(1.0))
    what = "control: rows: requests for bytes to the store,"
    first, later = float(cluster["store_gets_first_epoch"]), float(cluster["store_gets_later"])
    yield Row("control_rows_cold", f"{what} first epoch", [first], Target(1, ""), "")
    yield Row("control_rows_warm", f"{what} later ones", [later], Target(0, "", at_least=False), "")
