"""What LMDB's errors are called above this package."""

from __future__ import annotations

import errno
import os

import lmdb

from kara_cache.errors import FormatError, KaraError
from kara_cache.storage.kv.files import DatabaseFiles

_FULL_BYTES = 1 << 20  # what a file system may keep back of its last bytes
_OF_THE_SYSTEM = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.ENOMEM)


def translated(exc: BaseException, what: str, files: DatabaseFiles) -> Exception:
    """FormatError for damage, ValueError for what is open already, OSError of the system, else KaraError."""
    said = f"{files.path}: {what}: {exc}"
    if isinstance(exc, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError)):
        return FormatError(said)
    if "already open in this process" in str(exc):
        return ValueError(f"{files.path}: already open in this process; use that DB, threads can share it")
    code = getattr(exc, "code", 0) or 0
    for number in _OF_THE_SYSTEM:
        if code == number or os.strerror(number) in str(exc):
            # LMDB calls a write that was cut short an I/O error, whatever the reason.
            real = errno.ENOSPC if number == errno.EIO and files.free_bytes() < _FULL_BYTES else number
            return OSError(real, f"{os.strerror(real)}: {said}")
    return KaraError(said)


def has_no_addresses(exc: BaseException) -> bool:
    """The map is larger than the address space that this process may use."""
    return isinstance(exc, MemoryError) or os.strerror(errno.ENOMEM) in str(exc)


def may_not_lock(exc: BaseException, files: DatabaseFiles) -> bool:
    """The data could be read, only the lock file may not be written."""
    denied = any(os.strerror(number) in str(exc) for number in (errno.EACCES, errno.EROFS, errno.EPERM))
    return denied and os.access(files.data, os.R_OK)
