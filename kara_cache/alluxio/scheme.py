"""What fsspec finds behind `alluxiofs` and `alluxio`: alluxiofs itself where that is installed, else ours.

fsspec knows one class for each scheme, and whoever installs both packages has programs for the other one.
`fsspec.register_implementation("alluxiofs", AlluxioFileSystem, clobber=True)` with ours says otherwise.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def __getattr__(name: str) -> Any:
    """Looked up when fsspec asks, so that importing this module loads neither."""
    if name != "AlluxioFileSystem":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "alluxiofs" if find_spec("alluxiofs") is not None else "kara_cache.alluxio"
    return getattr(import_module(module), name)
