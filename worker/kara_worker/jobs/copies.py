"""Pages that another worker has, taken from there instead of from the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from kara_cache.errors import KaraError, WorkerUnavailable
from kara_cache.page import PageId
from kara_cache.transport.worker_client import WorkerClient
from kara_worker.page_cache import FileRef, PageCache
from kara_worker.peer_page import take_page

log = logging.getLogger(__name__)

_PAGE_S = 20.0


class Copies:
    """In any thread."""

    def __init__(self, cache: PageCache, peers: Callable[[str], WorkerClient | None]) -> None:
        """`peers` gives the worker of an id, if there is one."""
        self._cache = cache
        self._peers = peers

    def take(self, origin: str, files: Sequence[tuple[FileRef, Sequence[int]]]) -> list[list[int]]:
        """Blocking. Which of these pages came and were kept, for each file; what did not is no error here."""
        client = self._peers(origin)
        kept: list[list[int]] = [[] for _ in files]
        if client is None:
            return kept
        try:
            for mine, (ref, indices) in zip(kept, files, strict=True):
                for index in indices:
                    if self._take(client, ref, index):
                        mine.append(index)
        except WorkerUnavailable as exc:
            log.debug("worker %s gives no copies: %s", origin, exc)
        return kept

    def _take(self, client: WorkerClient, ref: FileRef, index: int) -> bool:
        try:
            page, deadline = PageId(ref.file_id, index), time.monotonic() + _PAGE_S
            return take_page(self._cache, client, page, deadline) is not None
        except WorkerUnavailable:
            raise
        except (KaraError, OSError, ValueError) as exc:
            log.debug("no copy of page %d of %s: %s", index, ref.path, exc)
            return False
