"""All who may be reading in this process: the map changes, and a fork happens, when none of them does."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kara_cache.storage.kv.reader import LocalReader, Reader

_FORK_WAIT_S = 10.0


class Readers:
    """Thread-safe. It belongs to one process: a forked child begins with an empty one."""

    def __init__(self) -> None:
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()  # guarded by _registry
        self._registry = threading.Lock()
        self._local = threading.local()

    def register(self, reader: Reader) -> None:
        with self._registry:
            self._readers.add(reader)

    def local(self) -> LocalReader:
        """This thread's own."""
        reader: LocalReader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = LocalReader()
            self.register(reader)
        return reader

    @contextmanager
    def paused(self) -> Iterator[list[Reader]]:
        """Nobody is in the middle of a call."""
        with ExitStack() as held:
            held.enter_context(self._registry)  # no new readers meanwhile
            readers = list(self._readers)
            for reader in readers:
                held.enter_context(reader.lock)
            yield readers

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Nobody has a read transaction."""
        with self.paused() as readers:
            for reader in readers:
                reader.suspend()
            yield

    def suspend_for_fork(self) -> list[threading.Lock]:
        """The locks that keep them suspended until the fork is done; one that stays busy goes without."""
        held: list[threading.Lock] = []
        if not self._registry.acquire(timeout=_FORK_WAIT_S):
            return held
        held.append(self._registry)
        for reader in list(self._readers):
            if reader.lock.acquire(timeout=_FORK_WAIT_S):
                held.append(reader.lock)
                reader.suspend()
        return held
