"""Removed segments that another process may still be reading."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress

from kara_worker.segments.segment import Segment

HELD_S = 60.0  # a client asks again for pages it reads after RENEW_S = 30 s; as much again for slow ones


class Quarantine:
    """Gives the room of removed segments back although a process forgot to close its descriptor.

    A client that is not asked to read any more holds what it has for as long as it lives: segments of
    gigabytes, for a few pages. Nobody reads a page without asking for it again after 30 s, so a segment
    that went to another process is cut to nothing when it has been 60 s, and when none of our own
    responses needs it. Whoever should still read there (a process that was stopped) reads too few
    bytes, and asks again: nothing depends on the clock but the time at which room comes back.
    A process that maps a page could not be told that way; it holds a lock on the segment meanwhile
    (`kara_cache/same_host/page_views.py`), and what is locked is not cut.

    Not thread-safe: the shelf's lock guards it.
    """

    def __init__(self, held_s: float, clock: Callable[[], float]) -> None:
        self._held_s = held_s
        self._clock = clock
        self._held: list[tuple[Segment, int]] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment, _ in self._held)

    def add(self, segment: Segment) -> None:
        """To be called before the file is unlinked. Raises OSError."""
        if not segment.passed_at:
            return
        os.chmod(segment.path, 0o600)
        self._held.append((segment, os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)))

    def release(self, *, early: bool = False) -> list[int]:
        """Descriptors of segments that nobody reads any more, locked: to be cut to nothing and closed.
        `early`: also of those that another process may be reading, which then asks again."""
        now, due, kept = self._clock(), [], []
        for segment, fd in self._held:
            read_here = any(file() is not None for file in segment.files)
            early_for_others = now < segment.passed_at + self._held_s and not early
            if read_here or early_for_others or is_mapped(fd):
                kept.append((segment, fd))
            else:
                due.append(fd)
        self._held = kept
        return due

    def close(self) -> None:
        for _, fd in self._held:
            os.close(fd)
        self._held = []


def is_mapped(fd: int) -> bool:
    """Whether a process has a mapping of the segment; if not, none can have one until `fd` is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: then nobody has one, and nobody maps
        return False
    return False


def cut(fds: list[int]) -> None:
    """Gives their blocks back, whoever else has them open."""
    for fd in fds:
        with suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)
