"""The port to an eviction policy: pure bookkeeping, no I/O, no clock, no lock (the page store holds one)."""

from __future__ import annotations

from typing import Protocol

PageKey = tuple[bytes, int]
"""A `PageId`, or the plain tuple that equals it, as which books keep millions of pages: of a tuple that holds
nothing but bytes and numbers the collector sees that it can be in no cycle, and never looks at it again; of
a subclass it does not. With a million named tuples in its books a full collection stopped the worker for a
second."""


class EvictionPolicy(Protocol):
    """Sizes are bytes on disk. A page is tracked from `track` until `evict` returned it or `forget`."""

    def admit(self, page: PageKey, size: int, group: str) -> bool:
        """Whether a new page may come in when room must be made for it; False keeps what is there."""
        ...

    def track(self, page: PageKey, size: int, group: str) -> None: ...

    def touch(self, page: PageKey) -> None:
        """A use. Unknown pages are ignored. Called for every hit: must stay under a microsecond or two."""
        ...

    def evict(self) -> PageKey | None:
        """Chooses the next victim and stops tracking it; None when nothing is tracked."""
        ...

    def expendable(self) -> bool:
        """Whether evicting ahead of need costs nothing: the next victim is worth no more than free space.

        The page store makes room in the background only while this holds; a policy that keeps what it
        has would otherwise lose pages to the watermarks that no new page was admitted for.
        """
        ...

    def forget(self, page: PageKey) -> None:
        """The page is gone for another reason. Unknown pages are ignored."""
        ...

    def __len__(self) -> int: ...
