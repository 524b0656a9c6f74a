"""What keeps a read transaction, and gives it up when the environment asks for it."""

from __future__ import annotations

import threading
from typing import Any, Protocol

Lmdb = Any  # lmdb has type hints since 3.0 only


class Reader(Protocol):
    """Keeps a read transaction between its calls; `lock` is held during each, and by whoever suspends it."""

    lock: threading.Lock

    def suspend(self) -> None:
        """Ends the read transaction; the next call begins another one."""
        ...


class LocalReader:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.transaction: Lmdb | None = None

    def suspend(self) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.abort()


class MapChanged(Exception):
    """Another process has grown the map: a signal between the parts of this package, nobody else sees it."""

    def __init__(self, generation: int) -> None:
        super().__init__(generation)
        self.generation = generation
