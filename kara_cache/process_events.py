"""Fork and exit of the process, told to the clients that live in it.

A child of `fork` has one thread, and every lock is as the parent's other threads left it. So objects
with locks or sockets get a call in the child before any other code runs there; it must not take a lock.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol
from weakref import WeakSet

_EXIT_PRIORITY = 10  # of multiprocessing's finalizers: before its own, which have none


class Watcher(Protocol):
    def after_fork(self) -> None:
        """In the child, before anything else; must take no lock that existed before."""
        ...

    def at_exit(self) -> None:
        """The process is about to end. May take a moment, must not raise."""
        ...


_watchers: WeakSet[Watcher] = WeakSet()  # empty until the first client is made, and hooks with it
_hooked: set[str] = set()  # hooks that this process, or one it was forked from, has set


def watch(watcher: Watcher) -> None:
    """From now on `watcher` is told of forks, as long as it lives."""
    if "fork" not in _hooked:
        _hooked.add("fork")
        os.register_at_fork(after_in_child=_after_fork)
    _watchers.add(watcher)


def tell_at_exit() -> None:
    """All watchers are told of the exit of this process. Call once in each process, also in forked ones.

    Children of multiprocessing, such as workers of a DataLoader, end without running `atexit`.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _at_exit, exitpriority=_EXIT_PRIORITY)
    elif "exit" not in _hooked:
        _hooked.add("exit")
        atexit.register(_at_exit)


def _after_fork() -> None:
    for watcher in list(_watchers):
        watcher.after_fork()


def _at_exit() -> None:
    for watcher in list(_watchers):
        watcher.at_exit()
