"""Pages on SSD, one file each: always safe, since no file is ever written twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from kara_cache.errors import ConfigError
from kara_cache.page import MAX_PAGE_BYTES, MIN_PAGE_BYTES
from kara_worker.eviction.base import EvictionPolicy
from kara_worker.pages.disk_page_store import DiskPageStore
from kara_worker.pages.left_segments import remove_left_segments
from kara_worker.pages.open_pages import OpenPages
from kara_worker.pages.page_file import PageEntry, footprint, group_token
from kara_worker.pages.page_files import PageFiles
from kara_worker.pages.page_index import FileIndex
from kara_worker.pages.page_space import PageSpace


class FilePageStore(DiskPageStore[PageEntry]):
    """A `PageStore` over one or more directories, each of which belongs to this process alone.

    Bytes are counted as the disk counts them (`footprint`). A page that is evicted while somebody reads
    it gives its blocks back when the last reader lets go.

    After a restart `get` answers at once: while the directories are being listed, a page that is not
    known yet has its own directory (one of 256) listed first. In the first second a `put` waits for
    the end of the listing, after that it is refused until then: nobody knows how much room there is.
    """

    def __init__(
        self,
        directories: Sequence[str | os.PathLike[str]],
        capacity_bytes: int,
        page_bytes: int,
        policy: EvictionPolicy,
        *,
        high_watermark: float = 0.95,
        low_watermark: float = 0.90,
        open_pages: int = 1024,
        min_free_bytes: int | None = None,
        probe_s: float = 30.0,
        quotas: Mapping[str, int] = MappingProxyType({}),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Raises ConfigError for directories that are not ours, and for options that cannot be meant.

        Args:
            directories: normally one for each SSD; pages spread over them in proportion to their size.
            capacity_bytes: of all directories together.
            high_watermark: part of the capacity above which the policy is asked before a page comes in, and
                above which pages are evicted in the background down to `low_watermark`, as far as the
                policy can spare them.
            open_pages: descriptors that are kept; never more than half of what the process may have.
            min_free_bytes: stays free on each file system, whoever fills it: at that point an old page goes
                for each new one. Default: 1 % of the file system, at least 64 MiB.
            probe_s: between two looks at a directory that failed.
            quotas: bytes that the pages of a group may take at most; the policy then is a `Quotas` made
                for their `group_token`s.
        """
        check_options(directories, capacity_bytes, page_bytes, high_watermark, low_watermark)
        space = PageSpace(
            capacity_bytes,
            policy,
            OpenPages(open_pages),
            FileIndex(),
            high=high_watermark,
            low=low_watermark,
            quotas={group_token(group): count for group, count in quotas.items()},
        )
        files = PageFiles(directories, page_bytes, space, min_free_bytes=min_free_bytes)
        for directory in files.directories:
            remove_left_segments(directory)
        super().__init__(space, files, page_bytes, probe_s=probe_s, clock_ns=clock_ns)


def check_options(
    directories: Sequence[str | os.PathLike[str]],
    capacity_bytes: int,
    page_bytes: int,
    high_watermark: float,
    low_watermark: float,
) -> None:
    """Raises ConfigError for options that cannot be meant, of any kind of store."""
    if not directories or len({os.path.realpath(directory) for directory in directories}) != len(directories):
        named = ", ".join(map(str, directories)) or "none"
        raise ConfigError(f"page directories: expected at least one, each once, got {named}")
    if not MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES:
        raise ConfigError(f"page_bytes: {page_bytes}, allowed {MIN_PAGE_BYTES} .. {MAX_PAGE_BYTES}")
    if capacity_bytes < footprint(page_bytes):
        raise ConfigError(f"capacity: {capacity_bytes} bytes, a single page takes {footprint(page_bytes)}")
    if not 0 < low_watermark <= high_watermark <= 1:
        raise ConfigError(
            f"watermarks: low {low_watermark} and high {high_watermark}, expected 0 < low <= high <= 1"
        )
