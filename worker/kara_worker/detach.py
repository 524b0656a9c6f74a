"""Going into the background, after it is certain that the work goes on there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def detached(log_file: str, work: Callable[[], int], *, lines: int = 1) -> int:
    """Forks; the child runs `work` in a session of its own with output to `log_file`.

    Returns in the parent: 0 and the child's first `lines` lines on stdout once it has printed them (a
    worker prints one when it serves), or the child's exit code with its last words on stderr.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        os._exit(_child(log_file, writer, work))
    os.close(writer)
    printed = 0
    with os.fdopen(reader, "rb") as answers:
        while printed < lines and (line := answers.readline()):
            sys.stdout.buffer.write(line)
            printed += 1
    sys.stdout.flush()
    if printed == lines:
        return 0
    _, status = os.waitpid(pid, 0)
    with open(log_file, encoding="utf-8", errors="replace") as log:
        sys.stderr.write("".join(log.readlines()[-5:]))
    return os.waitstatus_to_exitcode(status) or 1


def _child(log_file: str, ready: int, work: Callable[[], int]) -> int:
    os.setsid()
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(ready, 1)  # the ready line goes to the parent; nothing else is printed to stdout
    os.dup2(log, 2)
    for descriptor in (log, null, ready):
        if descriptor > 2:
            os.close(descriptor)
    try:
        return work()
    except Exception as exc:  # noqa: BLE001 - the top of a process: the log is all that is left to tell
        print(f"kara-worker: {exc}", file=sys.stderr, flush=True)
        return 1
