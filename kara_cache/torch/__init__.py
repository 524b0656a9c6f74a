"""Rows and files as PyTorch data sets: one global order, exact resume, batches read together."""

from __future__ import annotations

from kara_cache.torch.object_map import ObjectMap
from kara_cache.torch.published_order import PublishedOrder, make_torch_dataset
from kara_cache.torch.resumable_loader import ResumableLoader
from kara_cache.torch.row_batches import RowBatches
from kara_cache.torch.row_map import RowMap
from kara_cache.torch.row_stream import RowStream
from kara_cache.torch.rows import MemoryRows, Rows

__all__ = [
    "MemoryRows",
    "ObjectMap",
    "PublishedOrder",
    "ResumableLoader",
    "RowBatches",
    "RowMap",
    "RowStream",
    "Rows",
    "make_torch_dataset",
]
