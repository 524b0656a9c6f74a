"""What a script learns from `kara`'s exit status."""

from __future__ import annotations

from enum import IntEnum

from kara_cache.errors import AccessDenied, CacheError, ConfigError, MembershipError, UnderStoreError


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # anything without a number of its own
    USAGE = 2  # also argparse's own
    NOT_FOUND = 3  # the file, directory or mount is not there
    DENIED = 4  # no token, a wrong or expired one, or the store said no
    UNAVAILABLE = 5  # no worker and no store could answer
    CONFIG = 6  # an option, environment variable or file is wrong
    INTERRUPTED = 130  # Ctrl-C, as shells count it


class UsageError(ValueError):
    """Arguments that argparse takes and the verb cannot."""


_BY_KIND: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (ConfigError, ExitCode.CONFIG),
    ((AccessDenied, PermissionError), ExitCode.DENIED),
    ((FileNotFoundError, NotADirectoryError), ExitCode.NOT_FOUND),
    ((CacheError, UnderStoreError, MembershipError), ExitCode.UNAVAILABLE),
)


def exit_code(error: BaseException) -> ExitCode:
    for kind, code in _BY_KIND:
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED
