"""A format at work in its own process and environment, asked over pipes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

_FORMATS = Path(__file__).resolve().parent / "formats"
_READY_S = 60.0


class MeasureError(RuntimeError):
    """What the format could not do, in its own words."""


class FormatProcess:
    """One format, opened on one place. Requests are answered one after another."""

    def __init__(self, python: Path, module: str, place: str, log: Path) -> None:
        self.log = log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [str(python), str(_FORMATS / "measure.py"), module, place],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
                start_new_session=True,
            )
        self._answers = b""
        try:
            self.pid = int(self._answer(_READY_S)["ready"])
        except (MeasureError, KeyError):
            self.close()
            raise

    def ask(self, column: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Raises MeasureError when it fails, or says nothing in time: then it is killed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"column": column, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise MeasureError(f"ended: {exc}") from exc
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        out, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._answers:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([out], [], [], max(0.0, left))
            if not readable:
                self.close()
                raise MeasureError(f"no answer in {timeout_s:.0f} s")
            piece = os.read(out, 1 << 16)
            if not piece:
                raise MeasureError(f"ended: {_tail(self.log)}")
            self._answers += piece
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(answer["error"])
        return answer

    def close(self) -> None:
        """Kills it with all its children; formats that hang at exit do so here."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
