"""A program of another environment at work in its own process, asked over pipes: a JSON line each way."""

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

_READY_S = 60.0


class AskedError(RuntimeError):
    """What the program could not do, in its own words."""


class AskedProcess:
    """Requests are answered one after another; the first line it says is {"ready": its pid}. A context."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str],
        directory: Path | None = None,
        cores: frozenset[int] | None = None,
    ) -> None:
        """`log` gets its stderr; `environment` is added to ours. AskedError where it does not start."""
        self.log = log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=directory,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **environment},
                start_new_session=True,
                preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
            )
        self._answers = b""
        try:
            self.pid = int(self._answer(_READY_S)["ready"])
        except (AskedError, KeyError):
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """AskedError when it fails, or says nothing in time: then it is killed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as exc:  # a pipe that nobody reads, or that `close` has closed
            raise AskedError(f"ended: {self._last_words()}") from exc
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        out, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._answers:
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                self.close()
                raise AskedError(f"no answer in {timeout_s:.0f} s")
            piece = os.read(out, 1 << 16)
            if not piece:
                raise AskedError(f"ended: {self._last_words()}")
            self._answers += piece
        line, _, self._answers = self._answers.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise AskedError(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        """Kills it with all its children: some programs hang at exit. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def __enter__(self) -> AskedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
