"""Workers that failed a moment ago and are left alone for a while."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

_MAX_STEPS = 3  # each failure in a row doubles the time, up to 8 times; chosen by feel


class Suspects:
    """Thread-safe without a lock: every step is one operation on a dict, and a lost update costs one probe.

    When a worker's time is up one caller tries it again, while the others stay away until that one
    has found it well: a worker that accepts and never answers costs one slow read each time, not
    one for each thread.
    """

    def __init__(self, base_s: float, *, clock: Callable[[], float] = monotonic) -> None:
        self._base_s = base_s
        self._clock = clock
        self._until: dict[str, tuple[float, int]] = {}  # worker id: end of its time, failures in a row

    def __repr__(self) -> str:
        return f"<Suspects {sorted(self._until)}>"

    def __contains__(self, worker_id: str) -> bool:
        """Whether it is left alone now; claims no probe."""
        entry = self._until.get(worker_id)
        return entry is not None and self._clock() < entry[0]

    def avoid(self, worker_id: str) -> bool:
        """Whether to ask another worker. False for a suspect whose time is up: the caller probes it."""
        entry = self._until.get(worker_id)
        if entry is None:
            return False
        now = self._clock()
        if now < entry[0]:
            return True
        self._until[worker_id] = (now + self._base_s, entry[1])
        return False

    def failed(self, worker_id: str) -> None:
        _, failures = self._until.get(worker_id, (0.0, 0))
        until = self._clock() + self._base_s * 2 ** min(failures, _MAX_STEPS)
        self._until[worker_id] = (until, failures + 1)

    def answered(self, worker_id: str) -> None:
        if self._until:
            self._until.pop(worker_id, None)
