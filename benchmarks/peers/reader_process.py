"""A peer's client at work in its own process and environment, asked over pipes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import CLIENT_CORES

_ROOT = Path(__file__).resolve().parents[2]
_READY_S = 60.0
_ANSWER_S = 120.0


class ReaderError(RuntimeError):
    """What the client could not do, in its own words."""


class ReaderProcess:
    """One client, on the clients' cores. Requests are answered one after another. A context."""

    def __init__(self, python: Path, module: str, options: Mapping[str, Any], log: Path) -> None:
        self._log = log
        paths = [str(_ROOT), str(_ROOT / "worker")]
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.peers.reading", module, json.dumps(dict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **_environment(options)},
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, CLIENT_CORES),
            )
        self._answers = b""
        try:
            self.pid = int(self._answer(_READY_S)["ready"])
        except (ReaderError, KeyError):
            self.close()
            raise

    def prepare(self, length: int, places: Sequence[int]) -> str:
        """Reads everything once; the SHA-256 of what came."""
        return str(self._ask({"prepare": length, "places": list(places)})["sha256"])

    def measure(self, seconds: float) -> dict[str, float]:
        found: dict[str, float] = self._ask({"seconds": seconds})
        return found

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise ReaderError(f"ended: {self._tail()}") from exc
        return self._answer(_ANSWER_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        out, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._answers:
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise ReaderError(f"no answer in {timeout_s:.0f} s")
            piece = os.read(out, 1 << 16)
            if not piece:
                raise ReaderError(f"ended: {self._tail()}")
            self._answers += piece
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ReaderError(answer["error"])
        return answer

    def _tail(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        """Kills it with all its children: some clients hang at exit."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def __enter__(self) -> ReaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _environment(options: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = options.get("environment", {})
    return {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "no_proxy": "*", **found}
