"""The port to an eviction policy: pure bookkeeping, no I/O, no clock, no lock (the page store holds one)."""

from __future__ import annotations

from typing import Protocol

from kara_cache.page import PageId


class EvictionPolicy(Protocol):
    """Sizes are bytes on disk. A page is tracked from `track` until `evict` returned it or `forget`."""

    def admit(self, page: PageId, size: int, group: str) -> bool:
        """Whether a new page may come in when room must be made for it; False keeps what is there."""
        ...

    def track(self, page: PageId, size: int, group: str) -> None: ...

    def touch(self, page: PageId) -> None:
        """A use. Unknown pages are ignored. Called for every hit: must stay under a microsecond or two."""
        ...

    def evict(self) -> PageId | None:
        """Chooses the next victim and stops tracking it; None when nothing is tracked."""
        ...

    def expendable(self) -> bool:
        """Whether evicting ahead of need costs nothing: the next victim is worth no more than free space.

        The page store makes room in the background only while this holds; a policy that keeps what it
        has would otherwise lose pages to the watermarks that no new page was admitted for.
        """
        ...

    def forget(self, page: PageId) -> None:
        """The page is gone for another reason. Unknown pages are ignored."""
        ...

    def __len__(self) -> int: ...
