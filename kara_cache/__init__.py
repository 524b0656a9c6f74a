"""A shared cache between object storage and GPUs."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["KaraStorage", "RowDataset", "__version__", "make_torch_dataset", "serialization"]

_HOMES = {  # names that are imported when they are first used
    "KaraStorage": "kara_cache.storage.kara_storage",
    "RowDataset": "kara_cache.storage.rows.row_dataset",
    "make_torch_dataset": "kara_cache.torch",
}


def __getattr__(name: str) -> Any:
    if name == "serialization":
        return importlib.import_module("kara_cache.serialization")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
