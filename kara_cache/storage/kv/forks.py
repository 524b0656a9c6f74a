"""Databases of this process are told of a fork before it happens, and of the end of the process."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from kara_cache.process_events import tell_at_exit


class Forked(Protocol):
    def before_fork(self) -> list[threading.Lock]:
        """Lets go of what a child must not inherit; the locks that keep it so are released after the fork."""
        ...


class Forks:
    """Which environments to prepare for a fork. One for a process: `os.register_at_fork` is, too."""

    def __init__(self) -> None:
        self._environments: weakref.WeakSet[Forked] = weakref.WeakSet()
        self._held: list[threading.Lock] = []
        self._registered = False
        self._exit_told = 0  # the process that tells of its end

    def watch(self, environment: Forked) -> None:
        self._environments.add(environment)
        if not self._registered:
            self._registered = True
            os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._after)

    def tell_at_exit(self) -> None:
        """Watchers of `process_events` are told of the end of this process."""
        if self._exit_told != os.getpid():
            self._exit_told = os.getpid()
            tell_at_exit()

    def _before(self) -> None:
        self._held = [lock for environment in list(self._environments) for lock in environment.before_fork()]

    def _after(self) -> None:
        held, self._held = self._held, []
        for lock in held:
            lock.release()


forks = Forks()
