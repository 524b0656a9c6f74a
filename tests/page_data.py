"""Pages for tests. Their bytes follow from path, version and index, so that a wrong page is recognized."""

from __future__ import annotations

import os
import random
from pathlib import Path

from kara_cache.page import HEADER_BYTES, MIN_PAGE_BYTES, PageHeader, PageId, file_id
from kara_worker.pages.page_store import StoredPage

PAGE_BYTES = MIN_PAGE_BYTES
NOW_NS = 1_700_000_000_000_000_000
FOOTPRINT = HEADER_BYTES + PAGE_BYTES

Page = tuple[PageHeader, memoryview]


def make_page(
    path: str,
    index: int = 0,
    *,
    length: int = PAGE_BYTES,
    version: str = "v1",
    created_ns: int = NOW_NS,
    page_bytes: int = PAGE_BYTES,
) -> Page:
    data = memoryview(random.Random(f"{path}/{version}/{index}").randbytes(length))
    page = PageId(file_id(path, version, 1 << 30), index)
    return PageHeader.of(page, data, page_bytes=page_bytes, created_ns=created_ns, path=path), data


def read(stored: StoredPage | None) -> bytes:
    """All data, as a server would send it: unverified."""
    assert stored is not None
    return os.pread(stored.fd, stored.header.length, stored.offset)


def file_of(root: Path, page: PageId) -> Path:
    """Where a store of page files has put the page."""
    (found,) = (root / "pages").glob(f"*/{page.file_id.hex()}.{page.index:x}.*")
    return found
