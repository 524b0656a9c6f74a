"""Workers that failed a moment ago and are left alone for a while."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

_MAX_DOUBLINGS = 3  # each failed probe doubles the time, up to 8 times; chosen by feel


class _Entry(NamedTuple):
    until: float
    base_s: float  # of this time
    probed: bool  # its first time is up and somebody tries it


class Suspects:
    """Thread-safe without a lock: every step is one operation on a dict, and a lost update costs one probe.

    When a worker's time is up one caller tries it again, while the others stay away until that one
    has found it well: a worker that accepts and never answers costs one slow read each time, not
    one for each thread. When that one fails too, the worker is left alone for twice as long.
    """

    def __init__(self, base_s: float, *, clock: Callable[[], float] = monotonic) -> None:
        self._base_s = base_s
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by worker id

    def __repr__(self) -> str:
        return f"<Suspects {', '.join(sorted(self._entries)) or 'none'}>"

    def __contains__(self, worker_id: str) -> bool:
        """Whether it is left alone now; claims no probe."""
        entry = self._entries.get(worker_id)
        return entry is not None and self._clock() < entry.until

    def avoid(self, worker_id: str) -> bool:
        """Whether to ask another worker. False for a suspect whose time is up: the caller probes it."""
        entry = self._entries.get(worker_id)
        if entry is None:
            return False
        now = self._clock()
        if now < entry.until:
            return True
        self._entries[worker_id] = _Entry(now + entry.base_s, entry.base_s, True)
        return False

    def failed(self, worker_id: str) -> None:
        """It gave no answer. Many threads that fail together count once."""
        entry, now = self._entries.get(worker_id), self._clock()
        if entry is None:
            self._entries[worker_id] = _Entry(now + self._base_s, self._base_s, False)
        elif entry.probed or now >= entry.until:
            base_s = min(2 * entry.base_s, self._base_s * 2**_MAX_DOUBLINGS)
            self._entries[worker_id] = _Entry(now + base_s, base_s, False)

    def answered(self, worker_id: str) -> None:
        if self._entries:
            self._entries.pop(worker_id, None)
