"""Reads and views that one page at hand can answer: no request, and as few steps as there can be.

A system call, two sums and a copy are 1.4 us of a read of 4 KiB. Whatever is around them shows, a call or a
lock, too: so this is one function, and what not every read need do is done each hundredth of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from os import preadv
from time import monotonic

from kara_cache.cached_file import CachedFile
from kara_cache.checksum import checksum
from kara_cache.client_metrics import ClientMetrics
from kara_cache.metrics_push import MetricsPush
from kara_cache.same_host.local_pages import BLOCK_BYTES, SHORT_BLOCKS, LocalPages

_LOOK_S = 0.01  # some thousands of reads, of which two numbers each are kept until then


class HeldReads:
    """Thread-safe; usable in a forked child after its parts were told.

    What it cannot do, and what turns out to be wrong, is left to the long ways.
    """

    def __init__(
        self,
        local: LocalPages,
        metrics: ClientMetrics,
        push: MetricsPush,
        read_into: Callable[[CachedFile, int, memoryview], int],
        view: Callable[[CachedFile, int, int], memoryview],
    ) -> None:
        """`read_into` and `view` are the long ways."""
        self._local = local
        self._metrics = metrics
        self._push = push
        self._long_read, self._long_view = read_into, view
        self._note_seconds, self._note_bytes = metrics.local_seconds.append, metrics.local_bytes.append
        self._look_at = 0.0

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._look_at = 0.0

    def read_into(self, file: CachedFile, start: int, view: memoryview) -> int:
        """Fills `view` from byte `start`, verified; fewer bytes only at the end of the file.

        Memory of other items than bytes fits none of the comparisons here, or cannot be assigned to.
        """
        local, began, length = self._local, monotonic(), len(view)
        page_bytes = local.page_bytes
        page = local.pages.get((page_bytes, file.file_id, start // page_bytes))
        if page is None or page.renew_at < began or page.block_bytes != BLOCK_BYTES:
            return self._read_long(file, start, view)
        at = start % page_bytes
        before = at % BLOCK_BYTES
        at -= before
        count = -(-(before + length) // BLOCK_BYTES)
        size = count * BLOCK_BYTES
        if count > SHORT_BLOCKS or at + size > page.length or not length:
            return self._read_long(file, start, view)
        sums, number = page.block_sums, at // BLOCK_BYTES
        try:
            if before or length != BLOCK_BYTES:
                target, area, blocks = local.by_thread.areas[count]
                if preadv(page.fd, target, page.start + at) != size:
                    return self._read_long(file, start, view)
                for block in blocks:
                    if checksum(block) != sums[number]:
                        return self._read_long(file, start, view)
                    number += 1
                view[:] = area[before : before + length]
            elif preadv(page.fd, (view,), page.start + at) != size or checksum(view) != sums[number]:
                return self._read_long(file, start, view)  # a whole block needs no copy
        except (OSError, ValueError, NotImplementedError):
            return self._read_long(file, start, view)
        if began >= page.touch_at:
            local.touch((page_bytes, file.file_id, start // page_bytes), page, began)
        if began >= self._look_at:
            self._look(began)
        self._note_seconds(monotonic() - began)
        self._note_bytes(length)
        return length

    def _read_long(self, file: CachedFile, start: int, view: memoryview) -> int:
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        return self._long_read(file, start, view)

    def view(self, file: CachedFile, start: int, length: int) -> memoryview:
        """As `CacheClient.view`."""
        local = self._local
        now, page_bytes = local.now(), local.page_bytes
        page = local.pages.get((page_bytes, file.file_id, start // page_bytes))
        if page is None or (memory := page.memory) is None or page.renew_at < now:
            return self._long_view(file, start, length)
        at = start % page_bytes
        if not 0 < length <= page.length - at:
            return self._long_view(file, start, length)
        if now >= page.touch_at:
            local.touch((page_bytes, file.file_id, start // page_bytes), page, now)
        if now >= self._look_at:
            self._look(now)
        self._note_bytes(length)
        return memory[at : at + length]

    def _look(self, now: float) -> None:
        """What is due from time to time. The read that it is called by is counted the next time."""
        self._look_at = now + _LOOK_S
        if now >= self._push.due_at:
            self._push.when_due()
        self._metrics.fold()
