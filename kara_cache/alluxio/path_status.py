"""A file as Alluxio's clients describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kara_cache.ufs.base import FileInfo

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class AlluxioPathStatus:
    """Fields, their order and their types are those of alluxiofs 1.0.17. No slots: people read `__dict__`."""

    type: str  # "file" or "directory"
    name: str  # the last segment
    path: str  # where it is in the cache's own tree: /mount/rest
    ufs_path: str  # the url in the store
    length: int  # bytes, 0 of a directory
    human_readable_file_size: str
    completed: bool | None
    owner: str  # "": owners, groups and modes stay with the store
    group: str
    mode: str
    creation_time_ms: int  # 0 where the store does not tell
    last_modification_time_ms: int
    last_access_time_ms: int
    persisted: bool | None
    in_alluxio_percentage: int  # 0: not told; `kara explain` knows which pages are cached
    content_hash: str  # equal only for equal content, "" where the store has nothing of that kind


def status_of(file: FileInfo, ufs_path: str) -> AlluxioPathStatus:
    """Of a file of this cache, or of a directory."""
    time_ms = round(file.mtime * 1000) if file.mtime is not None else 0
    return AlluxioPathStatus(
        type="directory" if file.is_dir else "file",
        name=file.path.rstrip("/").rpartition("/")[2],
        path=file.path,
        ufs_path=ufs_path,
        length=file.size,
        human_readable_file_size=human_size(file.size),
        completed=True,
        owner="",
        group="",
        mode="",
        creation_time_ms=time_ms,  # a version is written once
        last_modification_time_ms=time_ms,
        last_access_time_ms=time_ms,
        persisted=True,
        in_alluxio_percentage=0,
        content_hash=file.version,
    )


def status_of_document(document: Mapping[str, Any]) -> AlluxioPathStatus:
    """Of what a worker answers to /v1/info and /v1/files; what it leaves out is as in alluxiofs."""
    return AlluxioPathStatus(
        type=str(document.get("mType", "")),
        name=str(document.get("mName", "")),
        path=str(document.get("mPath", "")),
        ufs_path=str(document.get("mUfsPath", "")),
        length=int(document.get("mLength") or 0),
        human_readable_file_size=str(document.get("mHumanReadableFileSize", "")),
        completed=document.get("mCompleted"),
        owner=str(document.get("mOwner", "")),
        group=str(document.get("mGroup", "")),
        mode=str(document.get("mMode", "")),
        creation_time_ms=int(document.get("mCreationTimeMs") or 0),
        last_modification_time_ms=int(document.get("mLastModificationTimeMs") or 0),
        last_access_time_ms=int(document.get("mLastAccessTimeMs") or 0),
        persisted=document.get("mPersisted"),
        in_alluxio_percentage=int(document.get("mInAlluxioPercentage") or 0),
        content_hash=str(document.get("mContentHash") or ""),
    )


def human_size(size: int) -> str:
    """As Alluxio writes sizes: `0B`, `75.72KB`; units of 1024.

    >>> human_size(77542)
    '75.72KB'
    """
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size}B" if unit == 0 else f"{value:.2f}{_UNITS[unit]}"
