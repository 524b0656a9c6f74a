"""What `import` costs, in fresh interpreters: every tool and every spawned loader worker pays it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping

from benchmarks.rounds import interleave
from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target

_MODULES = {
    "kara_cache": "import kara_cache",
    "face": "import kara_cache.filesystem",
    "fsspec": "import fsspec",
}
_RUNS = 3  # interpreters of each in a round
_CODE = "from time import perf_counter as now; began = now(); {}; print(now() - began)"
_WITHIN = Target(150, "ms", at_least=False)


def run(scene: Scene) -> list[Row]:
    # an empty place for compiled files that nothing is written to: every source is compiled, ours and others'
    empty = {"PYTHONPYCACHEPREFIX": str(scene.home / "no-bytecode"), "PYTHONDONTWRITEBYTECODE": "1"}
    variants = {name: _variant(code, {}) for name, code in _MODULES.items()}
    variants["compiling"] = _variant(_MODULES["kara_cache"], empty)
    with scene.clients_pinned():
        for once in variants.values():
            once()  # files are in memory, bytecode is written
        rounds = interleave(variants, scene.settings.rounds, scene.meter)
    detail = {f"{name}, ms": rounds.median(name, "ms") for name in variants}
    return [
        Row(
            "import_kara_cache", "import kara_cache", rounds.of("kara_cache", "ms"), _WITHIN, "ms", detail
        ).of(rounds),
        Row(
            "import_face",
            "import of what fsspec loads for kara:// - import fsspec",
            rounds.differences("face", "fsspec", "ms"),
            None,
            "ms",
        ).of(rounds),
        Row(
            "control_import",
            "control: import kara_cache, every source compiled anew / from bytecode",
            rounds.ratios("compiling", "kara_cache", "ms"),
            Target(1.2),
        ),
    ]


def _variant(code: str, environment: Mapping[str, str]) -> Callable[[], dict[str, float]]:
    command, changed = [sys.executable, "-c", _CODE.format(code)], {**os.environ, **environment}

    def once() -> dict[str, float]:
        times = []
        for _ in range(_RUNS):
            done = subprocess.run(
                command, env=changed, capture_output=True, text=True, timeout=60, check=True
            )
            times.append(float(done.stdout) * 1e3)
        return {"ms": statistics.median(times)}

    return once
