"""Every error this project raises of its own accord.

    KaraError
    ├── ConfigError          an option, mount or file is wrong: fix it and start again  (also ValueError)
    ├── AccessDenied         a token is missing, wrong, expired or of another scope     (also PermissionError)
    ├── CacheError           the cache could not answer: another owner or the store may
    │   ├── WorkerUnavailable    refused, reset, closed or silent
    │   ├── WorkerBusy           alive, but takes no new work (draining, queue full)
    │   ├── PageCorrupt          bytes or identity differ from the checksum of the fill
    │   └── StaleVersion         the file no longer has the version that was asked for
    ├── UnderStoreError      the store failed (5xx, reset, timeout) after its retries    (also OSError)
    ├── MembershipError      etcd cannot be used
    │   └── LeaseLost            our lease ran out: peers see us as passive
    └── FormatError          bytes on disk or on the wire are not what their format says

Facts about files stay the builtins every caller knows: FileNotFoundError, PermissionError,
IsADirectoryError, NotADirectoryError, FileExistsError. They are answers, never failures.
"""

from __future__ import annotations


class KaraError(Exception):
    """Base of the tree above."""


class ConfigError(KaraError, ValueError):
    """Names the key, the place it was read from, the limit and what was got."""


class AccessDenied(KaraError, PermissionError):
    """The cache refused the caller; asking another worker or the store would not be right."""


class CacheError(KaraError):
    """The cache could not answer. `reason` is the bounded label under which the detour is counted."""

    reason = "cache_error"


class WorkerUnavailable(CacheError):
    reason = "unavailable"

    def __init__(self, message: str, *, reason: str = "unavailable") -> None:
        super().__init__(message)
        self.reason = reason


class WorkerBusy(CacheError):
    reason = "busy"


class PageCorrupt(CacheError):
    reason = "corrupt"


class StaleVersion(CacheError):
    reason = "stale"


class UnderStoreError(KaraError, OSError):
    """The store failed, not the cache. The message names the store's URL and the path, never a secret."""


class MembershipError(KaraError):
    pass


class LeaseLost(MembershipError):
    pass


class FormatError(KaraError):
    pass
