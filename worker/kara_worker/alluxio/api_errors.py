"""The status of an error on `/v1/*`, as the published clients read it."""

from __future__ import annotations

import asyncio
import errno

from kara_cache.errors import AccessDenied, CacheError, ConfigError, KaraError, StaleVersion
from kara_worker.alluxio.ufs_names import UnknownMount

_CONFLICTS = (FileExistsError, IsADirectoryError, NotADirectoryError)


def status_of(error: BaseException) -> int:
    """alluxiofs 1.0.19 to 1.1.17 take 500 for "not found" and nothing else, so nothing else is a 500."""
    if isinstance(error, UnknownMount):
        return 404
    if isinstance(error, FileNotFoundError):
        return 500
    if isinstance(error, AccessDenied):
        return 401
    if isinstance(error, PermissionError):
        return 403
    if isinstance(error, _CONFLICTS) or (isinstance(error, OSError) and error.errno == errno.ENOTEMPTY):
        return 409
    if isinstance(error, StaleVersion):
        return 412
    if isinstance(error, (CacheError, TimeoutError, asyncio.TimeoutError)):
        return 503
    if isinstance(error, ConfigError) or (isinstance(error, ValueError) and not isinstance(error, KaraError)):
        return 400
    return 503


def message_of(error: BaseException) -> str:
    """For people; nothing of an error that was not foreseen but its class."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, (KaraError, OSError, ValueError)):
        return str(error)
    return f"the worker failed: {type(error).__name__}"
