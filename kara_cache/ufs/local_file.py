"""What the kernel says about a file, in the words of the store port."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from kara_cache.errors import StaleVersion, UnderStoreError
from kara_cache.ufs.base import FileInfo

_FACTS = {  # errnos that are answers; OSError(errno) makes the builtin of each but ENOTEMPTY
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
}


def version_of(status: os.stat_result) -> str:
    """Equal only for equal content, within the limits that `LocalStore` names."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def changed(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether an open file was written to in between; losing its name to a rename is not that."""
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        return True
    return before.st_ctime_ns != after.st_ctime_ns and before.st_nlink == after.st_nlink


def file_info(path: str, status: os.stat_result) -> FileInfo | None:
    """None for what is neither a regular file nor a directory."""
    if stat.S_ISDIR(status.st_mode):
        return FileInfo(path, 0, "", status.st_mtime, is_dir=True)
    if stat.S_ISREG(status.st_mode):
        return FileInfo(path, status.st_size, version_of(status), status.st_mtime)
    return None


def refuse_special(full: str) -> NoReturn:
    """For FIFOs, sockets and devices: reading them blocks, or does things."""
    raise PermissionError(errno.EACCES, "neither a regular file nor a directory", full)


@contextmanager
def answers(full: str) -> Iterator[None]:
    """Facts about the file pass, with its full path; what the disk did wrong is UnderStoreError."""
    try:
        yield
    except (StaleVersion, UnderStoreError):
        raise
    except OSError as error:
        code = error.errno or errno.EIO
        text = error.strerror or os.strerror(code)
        if code == errno.ENAMETOOLONG:  # nothing can be there
            code = errno.ENOENT
        raise (OSError if code in _FACTS else UnderStoreError)(code, text, full) from error
