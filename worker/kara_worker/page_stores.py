"""Which kind of page store a worker has."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from kara_cache.errors import ConfigError
from kara_worker.config import StoreConfig
from kara_worker.eviction.base import EvictionPolicy
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.segments.page_store import SegmentPageStore, can_hold_segments

log = logging.getLogger(__name__)


def open_page_store(
    config: StoreConfig,
    policy: EvictionPolicy,
    *,
    quotas: Mapping[str, int] = MappingProxyType({}),
) -> FilePageStore | SegmentPageStore:
    """The store that `page_store` names, over the configured directories. Raises ConfigError.

    `auto` is segments where every directory's file system reserves room for files, as ext4, xfs, btrfs
    and tmpfs do, else a file for each page. Pages that the other kind left are taken over by segments,
    and removed by files: they come from the store again.
    """
    directories = [Path(directory) for directory in config.page_dirs]
    kind = FilePageStore if _kind(config.page_store, directories) == "files" else SegmentPageStore
    return kind(
        directories,
        capacity_bytes=config.capacity_bytes,
        page_bytes=config.page_bytes,
        policy=policy,
        quotas=quotas,
        high_watermark=config.high_watermark,
        low_watermark=config.low_watermark,
    )


def _kind(wanted: str, directories: Sequence[Path]) -> str:
    if wanted == "files":
        return wanted
    unable = [str(directory) for directory in directories if not can_hold_segments(directory)]
    if not unable:
        return "segments"
    if wanted == "segments":
        raise ConfigError(
            f"page_store: segments, but the file system of {', '.join(unable)} reserves no room for files; "
            'set page_store = "files"'
        )
    log.info("page_store: files, since the file system of %s reserves no room for files", ", ".join(unable))
    return "files"
