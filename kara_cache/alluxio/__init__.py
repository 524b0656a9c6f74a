"""Alluxio's Python clients over this cache: `from kara_cache.alluxio import AlluxioFileSystem`.

Names, arguments and return types are those of alluxiofs 1.0.17 and of its documentation; what differs is
in docs/migrating-from-alluxio.md. With `dialect="alluxio"` they talk to a real Alluxio cluster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kara_cache.alluxio.client import AlluxioClient
    from kara_cache.alluxio.filesystem import AlluxioFileSystem
    from kara_cache.alluxio.load_report import LoadReport
    from kara_cache.alluxio.logger import setup_logger
    from kara_cache.alluxio.operation_options import CPOption, RMOption
    from kara_cache.alluxio.path_status import AlluxioPathStatus
    from kara_cache.load_job import LoadState

__all__ = [
    "AlluxioClient",
    "AlluxioFileSystem",
    "AlluxioPathStatus",
    "CPOption",
    "LoadReport",
    "LoadState",
    "RMOption",
    "setup_logger",
]

_FOUND_IN = {
    "AlluxioClient": "kara_cache.alluxio.client",
    "AlluxioFileSystem": "kara_cache.alluxio.filesystem",
    "AlluxioPathStatus": "kara_cache.alluxio.path_status",
    "CPOption": "kara_cache.alluxio.operation_options",
    "LoadReport": "kara_cache.alluxio.load_report",
    "LoadState": "kara_cache.load_job",
    "RMOption": "kara_cache.alluxio.operation_options",
    "setup_logger": "kara_cache.alluxio.logger",
}


def __getattr__(name: str) -> Any:
    """Imported at first use: a worker wants the ring alone, without fsspec."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FOUND_IN[name]), name)
