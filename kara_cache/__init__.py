"""A shared cache between object storage and GPUs."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["KaraStorage", "__version__", "make_torch_dataset"]

_HOMES = {  # names that are imported when they are first used
    "KaraStorage": "kara_cache.storage.kara_storage",
    "make_torch_dataset": "kara_cache.torch",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
