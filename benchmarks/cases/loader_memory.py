"""What a client adds to the memory of a DataLoader worker, of which a machine has dozens."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rounds import interleave
from benchmarks.scene import MIB, Scene, warm
from benchmarks.table_row import Row, Target

_ROOT = Path(__file__).resolve().parents[2]
_ROUNDS = 3  # starting torch takes seconds
_FLAT = Target(1, "MiB", at_least=False)


def run(scene: Scene) -> list[Row]:
    if importlib.util.find_spec("torch") is None:
        scene.skipped["memory of a DataLoader worker"] = "torch is not installed"
        return []
    names, big = scene.names["100KiB"], scene.names["big"][0]
    with scene.client() as client:
        warm(client, [f"/near/{name}" for name in (*names, big)])
    options = {**scene.cluster.client_options, "local_reads": False}
    fetched = scene.fetched()
    variants = {
        "kara": _variant("kara", options, [f"/near/{name}" for name in names], f"/near/{big}"),
        "local": _variant("file", {}, [str(scene.files / name) for name in names], str(scene.files / big)),
    }
    rounds = interleave(variants, min(_ROUNDS, scene.settings.rounds), scene.meter)
    detail = {f"{who}, {what} MiB": rounds.median(who, what) for who in variants for what in ("files", "big")}
    what = "memory that a client adds to a DataLoader worker"
    return [
        Row(
            "memory_files",
            f"{what}: files of 100 KiB over TCP - local files",
            rounds.differences("kara", "local", "files"),
            Target(24, "MiB", at_least=False),
            "MiB",
            detail,
        ).of(rounds),
        Row(
            "memory_sequential",
            f"{what}: a file of 64 MiB read in sequence, with read-ahead - a local file",
            rounds.differences("kara", "local", "big"),
            Target(48, "MiB", at_least=False),
            "MiB",
        ).of(rounds),
        Row(
            "memory_growth",
            "the same after three epochs - after one",
            rounds.of("kara", "growth"),
            _FLAT,
            "MiB",
        ).of(rounds),
        Row(
            "control_memory",
            "control: bytes from the store while memory was measured",
            [scene.fetched() - fetched],
            Target(0, "", at_least=False),
            "",
        ),
    ]


def _variant(
    protocol: str, options: dict[str, Any], files: list[str], big: str
) -> Callable[[], dict[str, float]]:
    given = json.dumps({"protocol": protocol, "options": options, "files": files, "big": big})

    def once() -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.loader_memory", given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=_ROOT, check=False)
        if done.returncode:
            raise RuntimeError(f"loader_memory, {protocol}: {done.stderr[-500:]}")
        found = json.loads(done.stdout)
        first, last = found["epochs"][0] / MIB, found["epochs"][-1] / MIB
        return {"files": last, "growth": last - first, "big": found["big"] / MIB}

    return once
