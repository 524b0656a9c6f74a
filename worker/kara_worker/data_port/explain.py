"""What this worker knows of one file: the answer behind `kara explain`."""

from __future__ import annotations

from typing import Any

from kara_cache.page import PageId
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import encode_info
from kara_worker.page_cache import PageCache

_MAX_RUNS = 256


def explain(cache: PageCache, info: FileInfo) -> dict[str, Any]:
    """The file's current version, and which of its pages are here, as runs [first, last]."""
    if info.is_dir:
        return {"info": encode_info(info), "pages": 0, "cached": 0, "runs": []}
    ref = cache.ref(info.path, info.version, info.size)
    total = -(-info.size // cache.page_bytes)
    runs: list[list[int]] = []
    cached = 0
    for index in range(total):
        if not cache.pages.contains(PageId(ref.file_id, index)):
            continue
        cached += 1
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return {
        "info": encode_info(info),
        "mount": ref.mount.name,
        "file_id": ref.file_id.hex(),
        "page_bytes": cache.page_bytes,
        "pages": total,
        "cached": cached,
        "runs": runs[:_MAX_RUNS],
        "filling": cache.filling(ref),
        "kept": ref.keepable,
    }
