"""fsspec's info dictionaries, which every file system fills in its own way, as FileInfo."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from fsspec.spec import AbstractFileSystem

from kara_cache.errors import UnderStoreError
from kara_cache.ufs.base import FileInfo

# What names one content, best first. `AbstractFileSystem.ukey` is not here: its default is a hash of
# the whole dictionary, which of http's is the URL and of others has sizes only.
_ETAGS = ("ETag", "etag", "e_tag", "eTag")
_CHECKSUMS = ("md5Hash", "content_md5", "md5", "checksum", "crc32c", "CRC", "sha", "blob_id", "generation")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "modified_at", "last_write_time")


def file_info(system: AbstractFileSystem, found: Mapping[str, Any], path: str) -> FileInfo:
    """`found` is what `system.info` or `system.ls` says of `path`.

    Raises:
        PermissionError: neither a file nor a directory.
        UnderStoreError: a file without a size.
    """
    kind, size = found.get("type"), found.get("size")
    if kind == "directory":
        return FileInfo(path, 0, "", is_dir=True)
    if kind != "file":
        raise PermissionError(errno.EACCES, f"is a {kind}: neither a file nor a directory", path)
    if size is None:
        raise UnderStoreError(f"{path}: its file system does not know how large it is")
    modified = _modified(system, found)
    return FileInfo(path, int(size), version_of(found, modified, int(size)), modified)


def version_of(found: Mapping[str, Any], modified: float | None, size: int) -> str:
    """ETag, else a checksum or generation, else time and size (and inode, where there is one), else ""."""
    for key in (*_ETAGS, *_CHECKSUMS):
        if value := found.get(key):
            return f"{key}:{str(value).strip(chr(34))}:{size}"
    if modified is None:
        return ""
    return f"modified:{modified!r}:{size}:{found.get('ino', '')}"


def _modified(system: AbstractFileSystem, found: Mapping[str, Any]) -> float | None:
    """Seconds since the epoch."""
    for key in _TIMES:
        if (moment := _seconds(found.get(key))) is not None:
            return moment
    if type(system).modified is AbstractFileSystem.modified:  # which only raises
        return None
    return _seconds(system.modified(found["name"]))


def _seconds(value: object) -> float | None:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, str):
        try:
            return _seconds(datetime.fromisoformat(value.replace("Z", "+00:00")))
        except ValueError:
            return None
    return float(value) if isinstance(value, (int, float)) else None
