"""What a test leaves running: threads that are no daemons or have no end, and processes, also detached ones.

A process is counted when it is a child of ours or carries RUN_MARK in its environment, so one that
was started with a new session and outlived its parent is found as well. Zombies are not counted.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

RUN_MARK = "PYTEST_RUN_MARK"
# Daemons that work until somebody closes what they belong to; in the next tests they would warn and retry.
_WITHOUT_END = ("kara-membership", "kara-registration")


@dataclass(frozen=True)
class Running:
    """A picture to compare with later, of all processes of the machine: only new ones are looked into."""

    threads: frozenset[threading.Thread]
    pids: frozenset[int]


def running() -> Running:
    return Running(frozenset(threading.enumerate()), _pids())


def left_since(before: Running, *, grace_s: float) -> list[str]:
    """Threads and processes that began after `before` and are still there after `grace_s`, in words.

    Waits only while there are some. Processes that are left are killed, so that the next test does
    not meet them; threads cannot be.
    """
    if not (_threads(before) or _processes(before)):
        return []
    gc.collect()
    multiprocessing.active_children()  # reaps what has ended
    deadline = time.monotonic() + grace_s
    for thread in _threads(before):
        thread.join(max(0.0, deadline - time.monotonic()))
    while pids := _processes(before):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        _wait_for_exit(pids[0], left_s)
    words = [f"thread {thread.name}" for thread in _threads(before)]
    for pid in _processes(before):
        words.append(f"process {pid}: {_command(pid)}")
        _kill(pid)
    return words


def _threads(before: Running) -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before.threads and (not thread.daemon or thread.name in _WITHOUT_END)
    ]


def _processes(before: Running) -> list[int]:
    new = _pids() - before.pids - _companions()
    return sorted(pid for pid in new if _is_ours(pid) and not _is_of_a_wider_fixture(pid, before))


def _is_of_a_wider_fixture(pid: int, before: Running) -> bool:
    """Whether it is the child of a process of ours that was there before: of a worker that lives on, say."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return parent in before.pids - _companions() and parent != os.getpid() and _is_ours(parent)


def _pids() -> frozenset[int]:
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())


def _companions() -> set[int | None]:
    """Processes that multiprocessing keeps until the interpreter ends, by design."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    forkserver = sys.modules.get("multiprocessing.forkserver")
    return {
        getattr(getattr(tracker, "_resource_tracker", None), "_pid", None),
        getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None),
    }


def _is_ours(pid: int) -> bool:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        if state in "ZX":
            return False
        mark = f"{RUN_MARK}={os.environ[RUN_MARK]}".encode()
        return int(parent) == os.getpid() or mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has just ended, or is another user's
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended"


def _wait_for_exit(pid: int, timeout_s: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    _wait_for_exit(pid, 5.0)
