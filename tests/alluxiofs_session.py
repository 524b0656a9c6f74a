"""A process with a published `alluxiofs` in an environment of its own, called from a test."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import published

PROGRAM = Path(__file__).with_name("alluxiofs_program.py")
REQUIREMENTS = {
    "1.0.17": ("alluxiofs==1.0.17", "protobuf<3.21", "requests"),
    "1.1.17": ("alluxiofs==1.1.17", "requests"),
}
_ANSWER_S = 120.0


class CallFailed(Exception):
    """What the client raised, by the name of its class."""

    def __init__(self, outcome: dict[str, str]) -> None:
        super().__init__(f"{outcome['error']}: {outcome['message']}\n{outcome['trace']}")
        self.name = outcome["error"]


class AlluxiofsSession:
    """A context; the process ends with it. No file system to fall back to: what it reads came from us."""

    def __init__(self, version: str, directory: Path, **options: Any) -> None:
        self.version = version
        python = published.python_with(*REQUIREMENTS[version])
        directory.mkdir(parents=True, exist_ok=True)
        self._log = (directory / "client.log").open("ab")
        self._process = subprocess.Popen(
            [str(python), str(PROGRAM), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=directory,  # it makes ./logs
            env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "no_proxy": "*"},
        )
        assert self._line() == "ready", (directory / "client.log").read_text(errors="replace")[-3000:]

    def __enter__(self) -> AlluxiofsSession:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            pipe.close()

    def fs(self, call: str, *args: Any, **kwargs: Any) -> Any:
        return self.step({"on": "fs", "call": call, "args": args, "kwargs": kwargs})

    def client(self, call: str, *args: Any, **kwargs: Any) -> Any:
        return self.step({"on": "client", "call": call, "args": args, "kwargs": kwargs})

    def read(self, path: str, *pieces: tuple[int, int]) -> Any:
        return self.step({"read": path, "pieces": pieces})

    def many(self, steps: list[dict[str, Any]], threads: int) -> list[Any]:
        return [value_of(outcome) for outcome in self.step({"many": steps, "threads": threads})]

    def step(self, step: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(step).encode() + b"\n")
        self._process.stdin.flush()
        return value_of(self._line())

    def _line(self) -> Any:
        """The next answer, "" when the process has ended."""
        assert self._process.stdout is not None
        out, deadline = self._process.stdout, time.monotonic() + _ANSWER_S
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no answer within {_ANSWER_S} s"
            piece = os.read(out.fileno(), 1 << 20)
            if not piece:
                return ""
            line += piece
        return json.loads(line)


def value_of(outcome: dict[str, Any]) -> Any:
    if "error" in outcome:
        raise CallFailed(outcome)
    return outcome["value"]
