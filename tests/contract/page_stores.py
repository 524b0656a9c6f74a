"""One factory for each kind of page store that the contract suite runs over.

To add a kind: write a function with the signature of `Opener` and name it in `PAGE_STORES`. Opening
the same root again, after `close`, is a restart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from page_data import PAGE_BYTES

from kara_worker.eviction import EvictionPolicy, make_policy
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.pages.page_store import PageStore
from kara_worker.segments.page_store import SegmentPageStore


class Opener(Protocol):
    def __call__(
        self,
        root: Path,
        *,
        capacity_bytes: int = 64 << 20,
        policy: EvictionPolicy | None = None,
        page_bytes: int = PAGE_BYTES,
    ) -> PageStore: ...


def page_files(
    root: Path,
    *,
    capacity_bytes: int = 64 << 20,
    policy: EvictionPolicy | None = None,
    page_bytes: int = PAGE_BYTES,
) -> PageStore:
    if policy is None:
        policy = make_policy("lru", guard=False)
    return FilePageStore([root], capacity_bytes, page_bytes, policy, min_free_bytes=0)


def segments(
    root: Path,
    *,
    capacity_bytes: int = 64 << 20,
    policy: EvictionPolicy | None = None,
    page_bytes: int = PAGE_BYTES,
) -> PageStore:
    if policy is None:
        policy = make_policy("lru", guard=False)
    return SegmentPageStore([root], capacity_bytes, page_bytes, policy, min_free_bytes=0)


PAGE_STORES: dict[str, Opener] = {"files": page_files, "segments": segments}
