"""A user who has configured nothing: directories of its own, no settings, the private worker found again."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pages_on_disk import pages_on_disk

README = Path(__file__).parents[1] / "README.md"
START_S = 60.0


def three_lines(url: str) -> str:
    """The first example of the README with another url, and a last line that says what was read."""
    match = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    code, count = re.subn(r"kara::https://[^\"]+", f"kara::{url}", match[1])
    assert count == 1, match[1]
    return f"{code}\nimport hashlib\nprint(len(head), hashlib.sha256(head).hexdigest())\n"


class PrivateHome:
    """Where processes of this user run; `environment` is all that they get."""

    def __init__(self, home: Path, runtime: Path) -> None:
        self.home = home
        self.runtime = runtime
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTEST_RUN_MARK": os.environ["PYTEST_RUN_MARK"],
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_CONFIG_HOME": str(home / ".config"),
        }

    def start(self, code: str, *, python: str = sys.executable, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [python, "-W", "error", "-c", code],
            cwd=self.home,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str, *, python: str = sys.executable, **environment: str) -> str:
        """What the code printed; fails with its words if it failed."""
        (printed,) = outputs([self.start(code, python=python, **environment)])
        return printed

    def workers(self) -> list[dict[str, Any]]:
        """The records of all private workers, also of dead ones."""
        return [json.loads(record.read_text()) for record in self.runtime.glob("**/worker.json")]

    @property
    def worker(self) -> dict[str, Any]:
        (found,) = self.workers()
        return found

    def starts(self) -> int:
        """How many workers have begun to serve, by their log."""
        logs = [log.read_text(errors="replace") for log in self.runtime.glob("**/worker.log")]
        return sum(text.count(" serves ") for text in logs)

    def wait_for_pages(self, count: int, timeout_s: float = START_S) -> None:
        """Until so many are on disk: a worker answers before it has written them."""
        deadline = time.monotonic() + timeout_s
        while len(pages_on_disk(self.home / ".cache/kara/pages")) < count:
            assert time.monotonic() < deadline, f"no {count} pages in {timeout_s} s"
            time.sleep(0.02)

    def end_worker(self, number: int = signal.SIGTERM) -> None:
        """Returns when the worker is gone."""
        pid = int(self.worker["pid"])
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, number)
            wait_for_exit(descriptor)
        finally:
            os.close(descriptor)


def outputs(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each printed, once all have ended well."""
    try:
        said = [process.communicate(timeout=START_S) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    for process, (_, words) in zip(processes, said, strict=True):
        assert process.returncode == 0, words
    return [printed for printed, _ in said]


def wait_for_exit(descriptor: int, timeout_s: float = 30.0) -> None:
    ended, _, _ = select.select([descriptor], [], [], timeout_s)
    assert ended, f"the worker still runs after {timeout_s} s"


@contextmanager
def private_home(directory: Path) -> Iterator[PrivateHome]:
    """Ends with every private worker of this user gone."""
    with tempfile.TemporaryDirectory(prefix="kara-r-") as runtime:  # a socket's path has at most 107 bytes
        home = PrivateHome(directory, Path(runtime))
        try:
            yield home
        finally:
            for worker in home.workers():
                with suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(int(worker["pid"]))
                    os.kill(int(worker["pid"]), signal.SIGKILL)
                    wait_for_exit(descriptor)
                    os.close(descriptor)
