"""Connections do not survive a fork; whoever holds some holds them here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class PerProcess(Generic[_Value]):
    """A value made at first use and once in each process. Thread-safe.

    A forked child makes its own and never uses the parent's, whose sockets, TLS state and locks it
    must not touch. A lock that some thread held at the moment of the fork does not block the child.
    """

    def __init__(self, make: Callable[[], _Value], close: Callable[[_Value], None]) -> None:
        self._make = make
        self._close = close
        self._made: tuple[int, _Value] | None = None
        self._lock = (os.getpid(), threading.Lock())  # guards making and _made

    def get(self) -> _Value:
        made = self._made
        if made is not None and made[0] == os.getpid():
            return made[1]
        with self._own_lock():
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def close(self) -> None:
        """Closes this process's value; the next `get` makes another one. Idempotent."""
        with self._own_lock():
            made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            self._close(made[1])

    def _own_lock(self) -> threading.Lock:
        pid, lock = self._lock
        if pid != os.getpid():
            # Two threads may get here at once and one value too many is made: it is dropped, unused.
            lock = threading.Lock()
            self._lock = (os.getpid(), lock)
        return lock
