"""A peer's client at work in its own process and environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.asked_process import AskedProcess
from benchmarks.machine import CLIENT_CORES

_ROOT = Path(__file__).resolve().parents[2]
_ANSWER_S = 120.0


class ReaderProcess:
    """One client, on the clients' cores: benchmarks/peers/reading.py. A context."""

    def __init__(self, python: Path, module: str, options: Mapping[str, Any], log: Path) -> None:
        """AskedError where it does not start."""
        paths = os.pathsep.join((str(_ROOT), str(_ROOT / "worker")))
        environment: dict[str, str] = options.get("environment", {})
        self._process = AskedProcess(
            [str(python), "-m", "benchmarks.peers.reading", module, json.dumps(dict(options))],
            log,
            environment={"PYTHONPATH": paths, "no_proxy": "*", **environment},
            directory=log.parent,
            cores=CLIENT_CORES,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, length: int, places: Sequence[int]) -> str:
        """Reads everything once; the SHA-256 of what came."""
        return str(self._process.ask({"prepare": length, "places": list(places)}, _ANSWER_S)["sha256"])

    def measure(self, seconds: float) -> dict[str, float]:
        return self._process.ask({"seconds": seconds}, _ANSWER_S)

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()
