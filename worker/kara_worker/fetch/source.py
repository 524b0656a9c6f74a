"""The port to whoever fetches for load jobs."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kara_cache.errors import StaleVersion
from kara_cache.mount import Mount
from kara_cache.page import PageHeader, PageId

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
    block_sums: array[int]  # as in `PageHeader`


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


def shorter(wanted: Wanted, count: int) -> StaleVersion:
    return StaleVersion(
        f"{wanted.relative}: {count} bytes at {wanted.start}, expected {wanted.length}; it has changed"
    )
