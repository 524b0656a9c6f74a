"""System calls of a running process that fail, wait or kill it: `strace -e inject=...`."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 60.0


@contextmanager
def traced(pid: int, inject: str, *, alive: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Attached to all threads of the process, counting from now; `inject` begins with the calls' names.

    `alive`: whether the process still is at the end. A tracer whose tracee dies ends by itself, and only so.
    """
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={inject.partition(':')[0]}"]
    tracer = subprocess.Popen([*command, "-e", f"inject={inject}", "-p", str(pid)], stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    try:
        ready, _, _ = select.select([tracer.stderr], [], [], PATIENCE_S)
        line = tracer.stderr.readline().decode() if ready else "nothing"
        assert "attached" in line, line
        yield
    finally:
        if alive():
            tracer.terminate()
        try:
            tracer.communicate(timeout=PATIENCE_S)
        except BaseException:
            tracer.kill()
            raise
