"""The connections of one process to one worker: a bounded stack of idle ones."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Protocol

from kara_cache.errors import WorkerBusy
from kara_cache.transport.connection import Connection


class Address(Protocol):
    """Where a worker listens."""

    where: str

    def connect(self, timeout_s: float) -> Connection:
        """A connection ready for a request. Raises WorkerUnavailable."""
        ...


class ConnectionPool:
    """Thread-safe. The connection used last is lent first, so that those in excess grow old together."""

    def __init__(self, address: Address, *, limit: int, idle_s: float, connect_timeout_s: float) -> None:
        """At most `limit` connections; one that was idle for `idle_s` is not used again."""
        self.address = address
        self._idle_s = idle_s
        self._limit = limit
        self._connect_timeout_s = connect_timeout_s
        self._reset()

    def __repr__(self) -> str:
        counts = f"{len(self._idle)} idle, {len(self._lent)} lent of {self._limit}"
        return f"<ConnectionPool {self.address.where} {counts}>"

    def _reset(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._free = threading.Condition(self._lock)
        self._waiting = 0
        self._idle: list[Connection] = []
        self._lent: set[Connection] = set()
        self._connecting = 0
        self._closed = False

    def borrow(self, deadline: float, *, fresh: bool = False) -> Connection:
        """A connection for this thread alone, until `give_back` or `discard`.

        With `fresh` a new one, and the idle ones are closed: the worker they led to has restarted.

        Raises:
            WorkerBusy: all were lent for the connect timeout; the worker is not to blame.
            WorkerUnavailable: a new one could not be made.
        """
        with self._lock:
            if fresh or (self._idle and monotonic() - self._idle[-1].idle_since > self._idle_s):
                self._close_idle()
            if not self._idle:
                self._wait_for_room(deadline)
            if self._idle and not fresh:
                connection = self._idle.pop()
                connection.connect_s = 0.0
                self._lent.add(connection)
                return connection
            self._connecting += 1
        began = monotonic()
        try:
            connection = self.address.connect(min(self._connect_timeout_s, deadline - monotonic()))
        except BaseException:
            with self._lock:
                self._connecting -= 1
                if self._waiting:
                    self._free.notify()
            raise
        connection.home = self
        connection.connect_s = monotonic() - began
        with self._lock:
            self._connecting -= 1
            self._lent.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """The exchange is over and the connection is good for another."""
        connection.reused = True
        connection.idle_since = monotonic()
        with self._lock:
            if self._closed or connection not in self._lent:  # lent before a fork: the parent's
                connection.close()
            else:
                self._idle.append(connection)
            self._lent.discard(connection)
            # one for each that comes back is enough to end those that a burst left behind
            if self._idle and connection.idle_since - self._idle[0].idle_since > self._idle_s:
                self._idle.pop(0).close()
            if self._waiting:
                self._free.notify()

    def discard(self, connection: Connection) -> None:
        """Closes a connection whose state is not known."""
        connection.close()
        with self._lock:
            self._lent.discard(connection)
            if self._waiting:
                self._free.notify()

    def close(self) -> None:
        """Idempotent. Lent connections are closed when they come back."""
        with self._lock:
            self._closed = True
            self._close_idle()

    def after_fork(self) -> None:
        """In the child: the parent's connections are the parent's; only our copies of descriptors close.

        Takes no lock: the old one may be held for ever by a thread that does not exist here.
        """
        for connection in (*self._idle, *self._lent):
            connection.close()
        self._reset()

    def _close_idle(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _wait_for_room(self, deadline: float) -> None:
        if self._has_room():
            return
        limit_s = min(self._connect_timeout_s, deadline - monotonic())
        self._waiting += 1
        try:
            room = self._free.wait_for(self._has_room, max(limit_s, 0.0))
        finally:
            self._waiting -= 1
        if not room:
            raise WorkerBusy(
                f"{self.address.where}: all {self._limit} connections in use for {limit_s:.3g} s"
            )

    def _has_room(self) -> bool:
        return bool(self._idle) or len(self._lent) + self._connecting < self._limit
