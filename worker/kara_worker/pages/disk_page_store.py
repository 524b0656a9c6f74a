"""A `PageStore` on SSD: the verbs, over books (`PageSpace`) and whatever lays the pages out (`Shelf`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic

from kara_cache.page import PageHeader, PageId
from kara_cache.path_rule import Priority
from kara_worker.pages.page_directory import PageDirectory
from kara_worker.pages.page_file import footprint, group_token
from kara_worker.pages.page_index import E, FileRecord
from kara_worker.pages.page_shelf import Shelf, Written
from kara_worker.pages.page_space import PageSpace, Reservation, Verdict
from kara_worker.pages.page_store import StoredFile, StoredPage, StoreStats

log = logging.getLogger(__name__)

_ROUNDS = 16  # evict-and-ask-again before a page is refused; only rivals that take the room use them up
_WRITES = 2  # of one page, the second after an eviction, where the disk turned out to be full
_BATCH = 32  # victims between two looks at the level
_LISTING_PATIENCE_NS = 1_000_000_000


class DiskPageStore(Generic[E]):
    """Bytes are counted as the disk counts them. A page that is evicted while somebody reads it gives its
    blocks back when the last reader lets go.

    After a restart `get` answers at once. In the first second a `put` waits until the shelf has looked
    through what an earlier process left, after that it is refused until then: nobody knows how much
    room there is.
    """

    def __init__(
        self,
        space: PageSpace[E],
        shelf: Shelf[E],
        page_bytes: int,
        *,
        probe_s: float,
        clock_ns: Callable[[], int],
    ) -> None:
        """Args:
        probe_s: between two looks at a directory that failed.
        """
        self.page_bytes = page_bytes
        self._probe_ns = int(probe_s * 1e9)
        self._clock_ns = clock_ns
        self._started_ns = clock_ns()
        self._closing = False
        self._listed = threading.Event()
        self._wake = threading.Event()
        self._space = space
        self._files = shelf
        self._threads = [threading.Thread(target=self._keep, name="page-keeper", daemon=True)]
        if shelf.unlisted:
            self._threads.append(threading.Thread(target=self._list_all, name="page-listing", daemon=True))
        else:
            self._listed.set()
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        stats = self.stats()
        used, capacity = stats.bytes / (1 << 30), stats.capacity_bytes / (1 << 30)
        return f"<{type(self).__name__} {stats.pages} pages, {used:.2f}/{capacity:.2f} GiB>"

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
        size = self._files.size_of(header)
        for attempt in range(_WRITES):
            answer, directory = self._reserve(header.page, size, token, disk_full=attempt > 0)
            if directory is None:
                return answer.verdict is Verdict.HERE
            written = self._files.write(directory, header, view, group=token)
            if written is not Written.FULL:
                break
        if self._files.behind:
            self._wake.set()
        if written is not Written.STORED:
            self._space.reject("full" if written is Written.FULL else "disk_error")
        return written is Written.STORED

    def _reserve(
        self, page: PageId, size: int, group: str, *, disk_full: bool
    ) -> tuple[Reservation[E], PageDirectory | None]:
        """Sets bytes aside, evicting for them only if there is no other way, or at least once if `disk_full`:
        a file system may count bytes as free that it cannot give out yet."""
        admitted, swapping = None, False
        for round_ in range(_ROUNDS):
            directory = None
            if not disk_full or round_:
                directory = self._files.choose(page, size, spare=not swapping, admitted=bool(admitted))
            answer = self._space.reserve(page, size, group, disk_full=directory is None, admitted=admitted)
            admitted = answer.admitted
            if answer.verdict is not Verdict.EVICT:
                break
            self._files.unlink(answer.victims)
            swapping = directory is None
        if answer.verdict is Verdict.RESERVED:
            if admitted:
                self._wake.set()
            return answer, directory
        if answer.verdict is not Verdict.HERE:
            self._space.reject("policy" if answer.verdict is Verdict.POLICY else "full")
        return answer, None

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

    def prefer(self, file_id: bytes, priority: Priority) -> None:
        self._space.prefer(file_id, priority)

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
        for key in self._space.index.pages():
            entry = self._space.index.get(key)
            cutoff = cutoffs.get(self._space.index.group(key, entry)) if entry is not None else None
            if entry is None or cutoff is None:
                continue
            page = PageId(*key)
            if self._files.is_older(page, entry, cutoff):
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
                if entry is not None and self._files.is_older(page, entry, cutoff):
                    count += self._files.drop(page, "ttl", entry=entry) > 0
        return count

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
            self._files.list_all(lambda: False)

    def _list_all(self) -> None:
        """A thread's life: what earlier processes left enters the books."""
        try:
            self._files.list_all(lambda: self._closing)
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
                self._files.maintain()
                if self._clock_ns() >= probe_at:
                    self.probe()
                    probe_at = self._clock_ns() + self._probe_ns
            except Exception:  # the top of a thread
                log.exception("keeping of the page store failed, going on")


def _mount_of(path: str) -> str:
    return path.strip("/").partition("/")[0]
