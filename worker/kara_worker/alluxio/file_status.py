"""A file or directory as `/v1/files` and `/v1/info` describe it.

Only what is known is said: the client reads every key by `.get`, and owner, group, mode and the cached
part of a file are facts that a worker would have to invent.
"""

from __future__ import annotations

from typing import Any

from kara_cache.ufs.base import FileInfo

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def file_status(info: FileInfo, *, url: str, alluxio_path: str) -> dict[str, Any]:
    """`url` is the file's place in the store, `alluxio_path` what the data port serves it as."""
    status: dict[str, Any] = {
        "mType": "directory" if info.is_dir else "file",
        "mName": info.path.rpartition("/")[2],
        "mPath": alluxio_path,
        "mUfsPath": url,
        "mLength": info.size,
        "mHumanReadableFileSize": readable_size(info.size),
        "mCompleted": True,
        "mPersisted": True,
        "mContentHash": info.version,
    }
    if info.mtime is not None:
        # stores have no time of creation or last read; the one they have is the best answer to all three
        milliseconds = int(info.mtime * 1000)
        for key in ("mCreationTimeMs", "mLastModificationTimeMs", "mLastAccessTimeMs"):
            status[key] = milliseconds
    return status


def readable_size(count: int) -> str:
    """As Alluxio writes it: 0B, 512B, 1.50KB."""
    if count < 1024:
        return f"{count}B"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.2f}{_UNITS[unit]}"
