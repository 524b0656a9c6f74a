"""The port below a page store on SSD: how pages lie in its directories. The books are kept above it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kara_cache.page import PageHeader, PageId
from kara_worker.pages.page_directory import PageDirectory
from kara_worker.pages.page_index import E
from kara_worker.pages.page_store import StoredPage


class Written(enum.Enum):
    STORED = "the page is on disk and in the books"
    FULL = "there was no room, whatever was said before"
    FAILED = "the disk failed"


class Shelf(Protocol[E]):
    """Thread-safe. Faults of a disk end here: counted, the page or the whole directory forgotten."""

    @property
    def directories(self) -> Sequence[PageDirectory]: ...

    @property
    def unlisted(self) -> bool:
        """Whether there may be pages that are not in the books yet."""
        ...

    def list_all(self, stop: Callable[[], bool]) -> None:
        """Puts what an earlier process left into the books, until `stop` says so."""
        ...

    def find(self, page: PageId) -> E | None:
        """The page's entry, looked for on disk where that has not been done."""
        ...

    def open(self, page: PageId, entry: E, *, whole: bool = False) -> StoredPage | None:
        """The page, its header checked, with `whole` also its data; None, and dropped, if that fails."""
        ...

    def is_older(self, page: PageId, entry: E, cutoff_ns: int) -> bool:
        """Whether the page was made before then; its header is read only if there is no other way."""
        ...

    def size_of(self, header: PageHeader) -> int:
        """What the page will take on disk."""
        ...

    def choose(self, page: PageId, size: int, *, spare: bool, admitted: bool) -> PageDirectory | None:
        """Where a new page goes, among the directories that have room; None if none has.

        With `spare`, beyond the bytes that are to stay free. With `admitted`, the policy would have others
        give way for it, and may be asked for them.
        """
        ...

    def write(
        self,
        directory: PageDirectory,
        header: PageHeader,
        data: memoryview,
        *,
        group: str,
    ) -> Written:
        """Writes a page whose bytes are reserved: in the books afterwards, or released and not there."""
        ...

    def drop(self, page: PageId, reason: str, *, entry: E | None = None) -> int:
        """Bytes that were freed; 0 if the page is not there, or not at that place any more."""
        ...

    def unlink(self, victims: Iterable[tuple[PageId, E]]) -> None:
        """Pages that have left the books leave the disk; then their bytes are counted as free."""
        ...

    @property
    def behind(self) -> bool:
        """Whether there is something for `maintain` to do soon."""
        ...

    def maintain(self) -> None:
        """What can be done ahead of need, off the request path."""
        ...

    def revive(self) -> int:
        """Tries the directories that are out of use; the number of those that serve again, pages and all."""
        ...

    def close(self) -> None:
        """Gives up the directories; idempotent."""
        ...
