"""One factory for each kind of under store that the contract suite runs over.

To add a kind: write a context manager that takes an empty directory and yields a `Site`, and name it
in `STORES`. A kind that needs something which is not installed calls `pytest.skip` (or fails, where
the environment variable CI is set: `require`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kara_cache.ufs import UnderStore, open_store
from kara_cache.ufs.memory import MemoryStore

SECRET = "hunter2"  # factories of stores with credentials put it in them: it must not show up anywhere


@dataclass(frozen=True)
class Capabilities:
    """What a kind cannot do, so that a law is tested by its refusal. Everything else is law for all."""

    writes: bool = True  # else every verb that changes something raises io.UnsupportedOperation
    appends: bool = False  # else open_writer(append=True) raises io.UnsupportedOperation
    directories: bool = False  # empty ones exist, and no file has children; object stores have neither


@dataclass(frozen=True)
class Site:
    """A store, and the way behind its back to what it stores."""

    kind: str
    store: UnderStore
    put: Callable[[str, bytes], None]  # makes or overwrites a file; parents are made
    delete: Callable[[str], None]
    capabilities: Capabilities = field(default_factory=Capabilities)
    requests: Callable[[], int] | None = None  # so far seen by the server; None where there is none

    def requests_seen(self) -> int:
        return self.requests() if self.requests is not None else 0


Factory = Callable[[Path], AbstractContextManager[Site]]


def require(found: bool, what: str) -> None:
    """Skips at a desk, fails in CI: a suite that silently tests nothing is worse than none."""
    if not found:
        if os.environ.get("CI"):
            pytest.fail(f"{what} is missing")
        pytest.skip(f"{what} is missing")


@contextmanager
def memory(root: Path) -> Iterator[Site]:
    store = MemoryStore("contract")

    def put(path: str, data: bytes) -> None:
        store.write(path, data)

    yield Site(
        "memory",
        store,
        put,
        store.delete,
        Capabilities(appends=True, directories=True),
    )
    store.close()


@contextmanager
def local(root: Path) -> Iterator[Site]:
    with closing(open_store(f"file://{root}")) as store:
        yield Site(
            "local",
            store,
            lambda path, data: put_file(root / path, data),
            lambda path: (root / path).unlink(),
            Capabilities(appends=True, directories=True),
        )


def put_file(path: Path, data: bytes) -> None:
    """In place, as careless programs do: same inode, no rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


STORES: dict[str, Factory] = {
    "memory": memory,
    "local": local,
}
MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = {}
