"""When this process changed what: so that no answer that is older than its own change satisfies it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

_MAX_PATHS = 65_536


class OwnChanges:
    """Thread-safe without a lock: every step is one operation on a dict.

    Workers may keep facts and listings for a while, and who writes is not always told to who keeps:
    a file and its directory have different owners. So a caller who has written says how old an
    answer may be, in seconds, because clocks differ. A forked child inherits what its parent did.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._changed: dict[str, float] = {}  # path, and each directory above it, in the order of time
        self._at_least = float("-inf")  # of paths that had to be forgotten

    def note(self, path: str) -> None:
        """The file at a kara path was written, made or deleted, or may have been."""
        now, changed = self._clock(), self._changed
        while path:
            changed.pop(path, None)
            changed[path] = now
            path = path.rpartition("/")[0]
        changed["/"] = now
        while len(changed) > _MAX_PATHS:
            oldest = next(iter(changed), None)
            if oldest is not None and (since := changed.pop(oldest, None)) is not None:
                self._at_least = max(self._at_least, since)

    def age_s(self, path: str) -> float | None:
        """How old an answer about `path`, or about what is below it, may be; None: as old as it likes."""
        since = self._changed.get(path, self._at_least)
        if since == float("-inf"):
            return None
        return max(0.0, self._clock() - since)
