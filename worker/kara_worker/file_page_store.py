"""Pages on SSD, one file each: always safe, since no file is ever written twice."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from kara_cache.errors import ConfigError
from kara_cache.page import MAX_PAGE_BYTES, MIN_PAGE_BYTES, PageHeader, PageId
from kara_worker.eviction.base import EvictionPolicy
from kara_worker.open_pages import OpenPages
from kara_worker.page_directory import PageDirectory
from kara_worker.page_file import (
    CREATED_STEP_NS,
    SHARDS,
    PageEntry,
    footprint,
    group_token,
)
from kara_worker.page_files import PageFiles, Written
from kara_worker.page_index import FileRecord
from kara_worker.page_space import PageSpace, Verdict
from kara_worker.page_store import StoredFile, StoredPage, StoreStats

log = logging.getLogger(__name__)

_ROUNDS = 16  # evict-and-ask-again before a page is refused; only rivals that take the room use them up
_WRITES = 2  # of one page, the second after an eviction, where the disk turned out to be full
_BATCH = 32  # victims between two looks at the level
_LISTING_PATIENCE_NS = 1_000_000_000


class FilePageStore:
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
        _check_options(directories, capacity_bytes, page_bytes, high_watermark, low_watermark)
        self.page_bytes = page_bytes
        self._probe_ns = int(probe_s * 1e9)
        self._clock_ns = clock_ns
        self._started_ns = clock_ns()
        self._closing = False
        self._listed = threading.Event()
        self._wake = threading.Event()
        opened = OpenPages(open_pages)
        self._space = PageSpace(
            capacity_bytes,
            policy,
            opened,
            high=high_watermark,
            low=low_watermark,
            quotas={group_token(group): count for group, count in quotas.items()},
        )
        self._files = PageFiles(directories, page_bytes, self._space, min_free_bytes=min_free_bytes)
        self._threads = [threading.Thread(target=self._keep, name="page-keeper", daemon=True)]
        if self._files.unlisted:
            self._threads.append(threading.Thread(target=self._list_all, name="page-listing", daemon=True))
        else:
            self._listed.set()
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        stats = self.stats()
        used, capacity = stats.bytes / (1 << 30), stats.capacity_bytes / (1 << 30)
        return f"<FilePageStore {stats.pages} pages, {used:.2f}/{capacity:.2f} GiB>"

    def peek(self, page: PageId) -> StoredPage | None:
        return self._space.peek(page)

    def get(self, page: PageId) -> StoredPage | None:
        stored = self._space.peek(page)
        if stored is not None or self._closing:
            return stored
        entry = self._files.find(page)
        if entry is not None and (stored := self._files.open(page, entry)) is not None:
            self._space.keep_open(page, entry, stored)
        return stored

    def contains(self, page: PageId) -> bool:
        return self._files.find(page) is not None

    def put(self, header: PageHeader, data: memoryview, *, group: str = "") -> bool:
        view = memoryview(data).cast("B")
        if len(view) != header.length or header.page_bytes != self.page_bytes:
            raise ValueError(
                f"page {header.page}: {len(view)} bytes of {header.length}, page size {header.page_bytes}; "
                f"this store has pages of {self.page_bytes}"
            )
        if self._closing or not self._wait_for_listing():
            self._space.reject("closed" if self._closing else "loading")
            return False
        token = group_token(group.strip("/") or _mount_of(header.path))
        for attempt in range(_WRITES):
            verdict, directory = self._reserve(
                header.page, footprint(header.length), token, disk_full=attempt > 0
            )
            if directory is None:
                return verdict is Verdict.HERE
            entry = PageEntry.of(directory.number, header.length, token, header.created_ns)
            written = self._files.write(directory, header, view, entry)
            if written is not Written.FULL:
                break
        if written is not Written.STORED:
            self._space.reject("full" if written is Written.FULL else "disk_error")
        return written is Written.STORED

    def _reserve(
        self, page: PageId, size: int, group: str, *, disk_full: bool
    ) -> tuple[Verdict, PageDirectory | None]:
        """Sets bytes aside, evicting for them only if there is no other way, or at least once if `disk_full`:
        a file system may count bytes as free that it cannot give out yet."""
        admitted, swapping = None, False
        for round_ in range(_ROUNDS):
            directory = (
                None if disk_full and round_ == 0 else self._files.choose(page, size, spare=not swapping)
            )
            answer = self._space.reserve(page, size, group, disk_full=directory is None, admitted=admitted)
            admitted = answer.admitted
            if answer.verdict is not Verdict.EVICT:
                break
            self._files.unlink(answer.victims)
            swapping = directory is None
        if answer.verdict is Verdict.RESERVED:
            if admitted:
                self._wake.set()
            return answer.verdict, directory
        if answer.verdict is not Verdict.HERE:
            self._space.reject("policy" if answer.verdict is Verdict.POLICY else "full")
        return answer.verdict, None

    def _wait_for_listing(self) -> bool:
        if self._listed.is_set():
            return True
        left_ns = self._started_ns + _LISTING_PATIENCE_NS - self._clock_ns()
        return self._listed.wait(max(0.0, left_ns / 1e9))

    def verify(self, page: PageId) -> bool:
        entry = self._files.find(page)
        return entry is not None and self._files.open(page, entry, whole=True) is not None

    def drop(self, page: PageId, reason: str) -> bool:
        return self._files.find(page) is not None and self._files.drop(page, reason) > 0

    def shelter(self, file_id: bytes) -> None:
        self._space.shelter(file_id)

    def expose(self, file_id: bytes) -> None:
        self._space.expose(file_id)

    def has_room(self, size: int, *, group: str = "") -> bool:
        return self._space.has_room(footprint(size), group_token(group.strip("/")))

    def files(self) -> Iterator[StoredFile]:
        self._learn_paths()
        for record in self._space.index.files():
            yield StoredFile(record.file_id, record.path or "", record.pages, record.bytes)

    def free(self, path: str, *, recursive: bool, reason: str = "free") -> tuple[int, int]:
        self._learn_paths()
        wanted = path.strip("/")
        below = f"{wanted}/" if wanted else ""

        def chosen(record: FileRecord) -> bool:
            name = (record.path or "").strip("/")
            return name == wanted != "" or (recursive and name.startswith(below))

        index = self._space.index
        pages = index.pages_of([record for record in index.files() if chosen(record)])
        sizes = [size for page in pages if (size := self._files.drop(page, reason))]
        return len(sizes), sum(sizes)

    def expire(self, ttl_s: dict[str, float], now_ns: int) -> int:
        self._finish_listing()
        cutoffs = {group_token(mount.strip("/")): now_ns - int(ttl * 1e9) for mount, ttl in ttl_s.items()}
        count = 0
        for page in self._space.index.pages():
            entry = self._space.index.get(page)
            cutoff = cutoffs.get(entry.group) if entry is not None else None
            if entry is not None and cutoff is not None and self._is_older(page, entry, cutoff):
                count += self._files.drop(page, "ttl", entry=entry) > 0
        return count

    def expire_files(self, ttl_of: Callable[[str], float | None], now_ns: int) -> int:
        self._learn_paths()
        count, index = 0, self._space.index
        for record in index.files():
            ttl_s = ttl_of(record.path) if record.path else None
            if ttl_s is None:
                continue
            cutoff = now_ns - int(ttl_s * 1e9)
            for page in list(index.pages_of([record])):
                entry = index.get(page)
                if entry is not None and self._is_older(page, entry, cutoff):
                    count += self._files.drop(page, "ttl", entry=entry) > 0
        return count

    def _is_older(self, page: PageId, entry: PageEntry, cutoff_ns: int) -> bool:
        """Names tell the age to 69 s; only a page at the edge has its header read."""
        if entry.created * CREATED_STEP_NS >= cutoff_ns:
            return False
        if (entry.created + 1) * CREATED_STEP_NS <= cutoff_ns:
            return True
        stored = self._files.open(page, entry)
        return stored is not None and stored.header.created_ns < cutoff_ns

    def _learn_paths(self) -> None:
        """Reads one header of each file that an earlier process left, one after another."""
        self._finish_listing()
        index = self._space.index
        unknown = [record for record in index.files() if record.path is None]
        for page in index.pages_of(unknown):
            record, entry = index.file(page.file_id), index.get(page)
            if record is None or entry is None or record.path is not None:
                continue
            stored = self._files.open(page, entry)
            if stored is not None:
                record.path = stored.header.path

    def evict_to_low_watermark(self) -> int:
        count = 0
        while victims := self._space.take_ahead(_BATCH):
            self._files.unlink(victims)
            count += len(victims)
        return count

    def probe(self) -> int:
        """Tries the directories that are out of use; the number of those that serve again."""
        return self._files.revive()

    def stats(self) -> StoreStats:
        return self._space.stats(loading=self._files.unlisted)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self._space.close_all()
        self._files.close()

    def _finish_listing(self) -> None:
        if self._files.unlisted:
            for shard in range(SHARDS):
                self._files.list_shard(shard)

    def _list_all(self) -> None:
        """A thread's life: what earlier processes left enters the books."""
        try:
            for shard in range(SHARDS):
                if self._closing:
                    return
                self._files.list_shard(shard)
        except Exception:  # the top of a thread
            log.exception("listing of the page directories ended early")
        finally:
            self._listed.set()
            self._wake.set()

    def _keep(self) -> None:
        """A thread's life: evicts ahead of need, looks after directories that failed."""
        probe_at = self._started_ns + self._probe_ns
        while not self._closing:
            self._wake.wait(self._probe_ns / 1e9)
            self._wake.clear()
            try:
                self.evict_to_low_watermark()
                if self._clock_ns() >= probe_at:
                    self.probe()
                    probe_at = self._clock_ns() + self._probe_ns
            except Exception:  # the top of a thread
                log.exception("keeping of the page store failed, going on")


def _mount_of(path: str) -> str:
    return path.strip("/").partition("/")[0]


def _check_options(
    directories: Sequence[str | os.PathLike[str]],
    capacity_bytes: int,
    page_bytes: int,
    high_watermark: float,
    low_watermark: float,
) -> None:
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
