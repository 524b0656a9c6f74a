"""Views of pages of this host: the memory in which the kernel keeps a page's file, mapped and verified.

A page in a file of its own is never written again and never cut, so what is mapped stays, whatever becomes
of the page and of its worker. A segment is cut some time after it was removed (docs/page-format.md), and a
process that looks at a mapping of it then ends by SIGBUS (mmap(2)). So a segment is locked, shared, for as
long as a mapping of it is there, and workers cut none that is locked: flock(2) belongs to the open file,
which a mapping and its copies in forked children hold, and the kernel lets go of it with the last of them.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections import Counter
from collections.abc import Callable
from weakref import ref as weak

from kara_cache.cached_file import CachedFile
from kara_cache.checksum import checksum
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import PageCorrupt
from kara_cache.failover import Failover
from kara_cache.page_buffers import fresh_memory
from kara_cache.same_host.held_page import HeldPage
from kara_cache.same_host.local_pages import Key, LocalPages
from kara_cache.same_host.local_ranges import take_pages
from kara_cache.stripe import STRIPE_BYTES
from kara_cache.transport.worker_client import WorkerClient

MAPPED_BYTES = 1 << 30  # of pages that stay mapped although nobody may be looking at them
MAPPED_PAGES = 256  # a mapping has a descriptor of its own
MAPPED_SEGMENTS = 32  # each of 32 MiB at most, of which the worker may want the room
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, for which Python has no name


class PageViews:
    """Thread-safe; in a forked child what is mapped stays so."""

    def __init__(
        self,
        local: LocalPages,
        failover: Failover,
        metrics: ClientMetrics,
        read_into: Callable[[CachedFile, int, memoryview], int],
        *,
        limit_bytes: int = MAPPED_BYTES,
    ) -> None:
        """`read_into` fetches what cannot be mapped."""
        self._local = local
        self._failover = failover
        self._metrics = metrics
        self._read_into = read_into
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()  # guards `_mapped`
        self._mapped: list[weak[HeldPage]] = []  # in the order in which they were mapped

    def __repr__(self) -> str:
        return f"<PageViews of {len(self._mapped)} pages>"

    def view(self, file: CachedFile, start: int, length: int) -> memoryview:
        """As `CacheClient.view`."""
        if start < 0 or length < 0:
            raise ValueError(f"{file.path}: a view of {length} bytes at {start}")
        length = max(0, min(length, file.size - start))
        found = self._map(file, start, length) if length else None
        if found is None:
            found = fresh_memory(length)
            self._read_into(file, start, found)
            return found.toreadonly()
        self._metrics.ranges("local", 1, length)
        return found

    def _map(self, file: CachedFile, start: int, length: int) -> memoryview | None:
        """The view, if a worker of this host has the range in one page."""
        cluster = self._failover.cluster
        table = cluster.table()
        worker = cluster.first(table, cluster.owners_of(table, file, start // STRIPE_BYTES))
        if worker is None or not worker.link.is_local or not worker.link.page_bytes:
            return None
        index, at = divmod(start, worker.link.page_bytes)
        key = worker.link.page_bytes, file.file_id, index
        if at + length > worker.link.page_bytes:
            return None
        if not self._local.has(file, index, worker.link.page_bytes):
            take_pages(self._local, worker, ((file, index),), self._failover.deadline())
        page = self._local.pages.get(key)
        if page is None or at + length > page.length:
            return None
        memory = page.memory
        if memory is None:
            try:
                memory = mapped(page)
            except PageCorrupt as exc:
                self._corrupt(worker, file, key, exc)
                return None
            if memory is None:
                return None
            self._keep(page, memory)
        return memory[at : at + length]

    def _keep(self, page: HeldPage, memory: memoryview) -> None:
        """For the views to come; pages mapped first are let go of beyond the limits, and stay where seen."""
        with self._lock:
            page.memory = memory
            known = [old for each in self._mapped if (old := each()) is not None and old.memory is not None]
            known.append(page)
            size = sum(old.length for old in known)
            segments = Counter(old.segment for old in known if old.segment)
            while len(known) > MAPPED_PAGES or size > self._limit_bytes or len(segments) > MAPPED_SEGMENTS:
                first = known.pop(0)
                first.memory = None
                size -= first.length
                segments[first.segment] -= 1
                segments += Counter()  # without those of which no page is left
            self._mapped = [weak(old) for old in known]

    def _corrupt(self, worker: WorkerClient, file: CachedFile, key: Key, exc: PageCorrupt) -> None:
        self._local.forget(key)
        self._metrics.fallback(exc.reason)
        worker.report_corrupt(file, key[2] * key[0], 1)

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._lock = threading.Lock()


def mapped(page: HeldPage) -> memoryview | None:
    """All data of a page, read in and compared with the sum of its fill; None where it cannot be mapped.

    Raises PageCorrupt, also where the disk does not give the bytes: it is asked for all of them now, since
    a mapping has no way to say it later but SIGBUS.
    """
    try:
        area, before = _area(page)
    except OSError:  # no descriptor left, a segment that is about to be cut, no /proc
        return None
    except ValueError as exc:
        if not page.in_own_file:  # it was cut: whoever reads the page asks again
            return None
        raise PageCorrupt(f"page {page.header.page} on this host: {exc}") from exc
    memory = memoryview(area)[before:]
    try:
        try:
            area.madvise(_POPULATE_READ)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            os.pread(page.fd, page.length, page.start)  # an older kernel
    except OSError as exc:
        raise PageCorrupt(f"page {page.header.page} on this host: {exc}") from exc
    if checksum(memory) != page.header.page_sum:
        raise PageCorrupt(f"page {page.header.page} on this host is not what was filled")
    return memory


def _area(page: HeldPage) -> tuple[mmap.mmap, int]:
    """The page's data mapped, and how many bytes before them: mappings begin where memory pages do.

    Raises OSError, ValueError for a file that ends too early.
    """
    before = page.start % mmap.ALLOCATIONGRANULARITY
    place = {"access": mmap.ACCESS_READ, "offset": page.start - before}
    if page.in_own_file:
        return mmap.mmap(page.fd, before + page.length, **place), before
    fd = _locked(page.fd)
    try:
        page.segment = os.fstat(fd).st_ino
        return mmap.mmap(fd, before + page.length, **place), before  # which has a copy of the descriptor
    finally:
        os.close(fd)


def _locked(fd: int) -> int:
    """The file opened again, since the one that was passed is open in its worker, too, and a lock on it
    would be everybody's. Raises OSError."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(own)
        raise
    return own
