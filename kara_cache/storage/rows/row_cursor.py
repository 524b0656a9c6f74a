"""The read pointer of a row data set, shared by all its threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from kara_cache.process_events import watch
from kara_cache.storage.rows.row_reader import Row

Fetch = Callable[[int], Sequence[Row]]
"""From a row number, relative to the window, to that row and some after it; none at the end."""


class RowCursor:
    """Hands out each row once, in order, however many threads ask. A forked child goes on where it is."""

    def __init__(self) -> None:
        self._at = 0
        self._ahead: deque[Row] = deque()  # rows from _at on
        self._lock = threading.Lock()  # guards _at and _ahead
        watch(self)

    def next(self, fetch: Fetch) -> tuple[int, Row] | None:
        """The row and its number; None at the end."""
        with self._lock:
            if not self._ahead:
                self._ahead.extend(fetch(self._at))
                if not self._ahead:
                    return None
            row = self._ahead.popleft()
            self._at += 1
            return self._at - 1, row

    def tell(self) -> int:
        return self._at

    def move(self, where: Callable[[int], int]) -> int:
        """To `where(position)`, which it returns."""
        with self._lock:
            self._ahead.clear()
            self._at = where(self._at)
            return self._at

    def after_fork(self) -> None:
        """Another thread of the parent may have been in the middle of `next`."""
        self._lock = threading.Lock()
        self._ahead = deque()

    def at_exit(self) -> None:
        """Nothing to tell."""
