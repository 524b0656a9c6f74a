"""Puts small pages straight into a page store: `python -m benchmarks.page_maker DIRECTORY COUNT`.

Each is the only page of a file of its own, so that there are as many files, and directory entries, as pages.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kara_cache.page import DEFAULT_PAGE_BYTES, PageHeader, PageId, file_id
from kara_worker.config import StoreConfig
from kara_worker.eviction import make_policy
from kara_worker.page_stores import open_page_store

PAGE_STORE = "auto"  # segments, where the file system can hold them
PAGE_BYTES = 512  # of data in each
FOOTPRINT_BYTES = 8192  # at most: header, data, rounded up to blocks of the disk


def path_of(number: int) -> str:
    return f"/near/pages/{number}"


def main(directory: str, count: int) -> None:
    Path(directory).mkdir(parents=True, exist_ok=True)
    capacity = count * FOOTPRINT_BYTES * 3 // 2 + (1 << 30)
    config = StoreConfig(page_dirs=(directory,), capacity_bytes=capacity, page_store=PAGE_STORE)
    store = open_page_store(config, make_policy(config.eviction, guard=False))
    try:
        for number in range(count):
            data = number.to_bytes(8, "little") * (PAGE_BYTES // 8)
            page = PageId(file_id(path_of(number), "v1", PAGE_BYTES), 0)
            header = PageHeader.of(
                page, data, page_bytes=DEFAULT_PAGE_BYTES, created_ns=time.time_ns(), path=path_of(number)
            )
            if not store.put(header, memoryview(data), group="near"):
                raise RuntimeError(f"page {number} was not kept: {store.stats()}")
    finally:
        store.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
