"""The port to whoever fetches for load jobs, and the one that does it in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from kara_cache.errors import StaleVersion
from kara_cache.mount import Mount
from kara_cache.page import PageHeader, PageId
from kara_worker.mounted_stores import MountedStores

Progress = Callable[[int, int], None]
"""Called with an index of what is wanted and how many of its bytes are valid, now and then."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`length` bytes from `start`, which is the start of a page, of one version of a file of a mount."""

    relative: str
    version: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class PageSums:
    page_sum: int
    block_sums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of `wanted[index]`: the sums of its pages, taken where the bytes came in, or an error."""

    index: int
    seconds: float  # at the store
    sums: Sequence[PageSums]
    error: Exception | None = None


class Seat(Protocol):
    """Room for one group of files, and somebody who fetches them one after another. One thread at a time."""

    def buffers(self, lengths: Sequence[int]) -> list[memoryview]:
        """Memory for a group; together at most `Source.seat_bytes`. Good until `release`."""
        ...

    def fetch(self, mount: Mount, wanted: Sequence[Wanted], progress: Progress) -> Iterator[Fetched]:
        """One for each that is wanted, in order, as they come; the bytes are in the buffers then.

        Never raises for a store. The iterator is to be exhausted.
        """
        ...

    def release(self, *, keep: bool) -> None:
        """With `keep` somebody still reads the memory: it is not used again."""
        ...


class Source(Protocol):
    """Thread-safe."""

    seat_bytes: int

    def borrow(self) -> Seat:
        """May wait for one; there are as many as load jobs have threads."""
        ...

    def rest(self) -> None:
        """Nothing is to be done for the time being: memory and processes may go."""
        ...

    def close(self) -> None: ...


def sums_of(view: memoryview, page_bytes: int) -> list[PageSums]:
    """Of each page; `view` begins with one."""
    nobody = PageId(bytes(16), 0)
    pages = (
        PageHeader.of(nobody, view[at : at + page_bytes], page_bytes=page_bytes, created_ns=0)
        for at in range(0, len(view), page_bytes)
    )
    return [PageSums(header.page_sum, header.block_sums) for header in pages]


class LocalSource:
    """Fetches in the thread that asks."""

    def __init__(self, stores: MountedStores, page_bytes: int, *, seat_bytes: int) -> None:
        self.seat_bytes = seat_bytes
        self._stores = stores
        self._page_bytes = page_bytes

    def borrow(self) -> LocalSeat:
        return LocalSeat(self._stores, self._page_bytes)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


class LocalSeat:
    def __init__(self, stores: MountedStores, page_bytes: int) -> None:
        self._stores = stores
        self._page_bytes = page_bytes
        self._buffers: list[memoryview] = []

    def buffers(self, lengths: Sequence[int]) -> list[memoryview]:
        self._buffers = [memoryview(bytearray(length)) for length in lengths]
        return self._buffers

    def fetch(self, mount: Mount, wanted: Sequence[Wanted], progress: Progress) -> Iterator[Fetched]:
        for index, one in enumerate(wanted):
            view, began = self._buffers[index], time.perf_counter()
            try:
                count = self._stores.read_into(
                    mount, one.relative, one.start, view, one.version, partial(progress, index)
                )
                if count != one.length:
                    raise shorter(one, count)
                sums = sums_of(view, self._page_bytes)
            except Exception as exc:  # noqa: BLE001 - as for a task's top: it is told to whoever waits
                yield Fetched(index, time.perf_counter() - began, (), exc)
            else:
                yield Fetched(index, time.perf_counter() - began, sums)

    def release(self, *, keep: bool) -> None:
        self._buffers = []


def shorter(wanted: Wanted, count: int) -> StaleVersion:
    return StaleVersion(
        f"{wanted.relative}: {count} bytes at {wanted.start}, expected {wanted.length}; it has changed"
    )
