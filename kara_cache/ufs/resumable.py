"""Stores that keep a part of a file until somebody who has the same bytes comes back with them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from kara_cache.errors import UnderStoreError
from kara_cache.ufs.base import UnderStoreWriter

ABANDONED_S = 7 * 86400  # nobody goes on with it any more: the days of AWS's own example of a lifecycle rule


class UploadGone(UnderStoreError):
    """The unfinished file was completed or given up by somebody else since."""


class ResumableWriter(UnderStoreWriter, Protocol):
    """Leaving the block by an exception, and a commit that fails, are a `suspend`."""

    def suspend(self) -> None:
        """Ends without a commit; what has arrived stays for the next writer. Idempotent."""
        ...


class Unfinished(Protocol):
    """What writers that were killed or suspended left in one directory. Thread-safe."""

    def open_writer(self, path: str) -> ResumableWriter:
        """As `UnderStore.open_writer`, for bytes that are likely those of an earlier writer.

        They are written from the first one on; what the store has of them already is compared (with
        digests that the store computed, or byte by byte) and not sent again where it is the same.

        `write` and `commit` raise UploadGone where somebody else has completed or given up the same file.
        """
        ...

    def clear(self, finished: Collection[str]) -> int:
        """Gives up what is of no use: of files that are complete now, and what nobody will go on with.

        Returns how many there were. What cannot be given up is logged.
        """
        ...


@runtime_checkable
class ResumableStore(Protocol):
    def unfinished(self, directory: str) -> Unfinished: ...
