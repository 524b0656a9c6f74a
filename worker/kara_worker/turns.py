"""Whose turn on a processor comes first: what a worker and its helpers ask of Linux, without privileges."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path

SHORT_S = 0.0003  # a worker's turn: a hit takes 0.1 ms; the usual turn is 1.4 ms on two cores
LONG_S = 0.01  # of who fetches for load jobs: whoever has shorter ones is let in at once

_SYSCALLS = {"x86_64": 314, "aarch64": 274}  # sched_setattr, asm/unistd.h
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # struct sched_attr, its first version: 48 bytes, sched_setattr(2)
_AUTOGROUP = Path("/proc/self/autogroup")


def take_turns_of(seconds: float) -> None:
    """For this thread and those it starts from now on. Shares stay as they are; since Linux 6.12 (EEVDF) a
    thread of shorter turns that wakes up need not wait for the end of somebody's longer one. Elsewhere
    nothing changes."""
    number = _SYSCALLS.get(platform.machine())
    if number is None or not sys.platform.startswith("linux"):
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, int(seconds * 1e9), 0, 0)
    if os.sched_getscheduler(0) == os.SCHED_OTHER:  # an operator's other choice stays
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def give_way(nice: int) -> None:
    """Lowers the priority of this thread, and of its session where the kernel schedules by sessions
    (sched(7), autogroup): there a nice value counts within a session only. The session's is half of it, since
    it gives way to every program of the machine: with 10, and fifteen busy ones, a load stood still."""
    os.nice(nice)
    with suppress(OSError):  # none, or somebody else set one a moment ago: the next thread tries again
        _AUTOGROUP.write_text(str(min(19, nice // 2)))
