"""The books of a page store: what is here, how much it takes, what may come in, what must go. No I/O."""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic

from kara_cache.page import PageId
from kara_cache.path_rule import Priority
from kara_worker.eviction.base import EvictionPolicy, PageKey
from kara_worker.eviction.priorities import Priorities
from kara_worker.eviction.sheltered import Sheltered
from kara_worker.pages.open_pages import OpenPages
from kara_worker.pages.page_index import E, PageIndex
from kara_worker.pages.page_store import StoredPage, StoreStats


class Verdict(enum.Enum):
    HERE = "the page is stored already"
    RESERVED = "its bytes are set aside: write it, then `add` or `release`"
    EVICT = "unlink the victims, `release` them, ask again"
    POLICY = "the policy keeps what is here"
    FULL = "no room, and nothing to evict"


@dataclass(frozen=True, slots=True)
class Reservation(Generic[E]):
    verdict: Verdict
    admitted: bool | None  # what the policy said; None while it was not asked
    victims: Sequence[tuple[PageId, E]] = ()


class PageSpace(Generic[E]):
    """Thread-safe. `bytes` counts files from before they are written until after they are unlinked, so
    that what is on disk never exceeds it; it never exceeds the capacity, except by pages that an
    earlier process with a larger capacity left, until they are evicted.

    Whatever leaves the set of open pages is let go of after the lock was released, because that is
    when descriptors are closed.
    """

    def __init__(
        self,
        capacity_bytes: int,
        policy: EvictionPolicy,
        open_pages: OpenPages,
        index: PageIndex[E],
        *,
        high: float,
        low: float,
        spare_bytes: int = 0,
        quotas: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """`spare_bytes` of the capacity no page gets; `quotas` limits the bytes of groups, and with them
        `policy` is a `Quotas`."""
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._most_bytes = capacity_bytes - spare_bytes
        self._high_bytes = int(self._most_bytes * high)
        self._low_bytes = int(self._most_bytes * low)
        self._lock = threading.Lock()  # guards everything here; nothing is read or written under it
        self._index = index
        self._ranked = policy if isinstance(policy, Priorities) else Priorities(policy)
        self._policy = Sheltered(self._ranked)
        self._told: dict[bytes, Priority] = {}  # of sheltered files, for when they are so no longer
        self._quotas = dict(quotas)
        self._group_bytes: Counter[str] = Counter()  # of groups with a quota
        self._open = open_pages
        self._evictions: Counter[str] = Counter()
        self._rejections: Counter[str] = Counter()
        self._corrupt: Counter[str] = Counter()
        self._disk_errors = 0

    def peek(self, page: PageId) -> StoredPage | None:
        """A page that is open; a use."""
        with self._lock:
            stored = self._open.get(page)
            if stored is not None:
                self._policy.touch(page)
            return stored

    def find(self, page: PageKey) -> E | None:
        with self._lock:
            return self._index.get(page)

    def keep_open(self, page: PageId, entry: E, stored: StoredPage) -> None:
        """A page that has just been opened; a use."""
        with self._lock:
            closing = None
            self._policy.touch(page)  # also if it was moved meanwhile
            if self._index.get(page) == entry:
                closing = self._open.add(page, stored)
        del closing

    def close_half(self) -> int:
        with self._lock:
            closing = self._open.take_half()
        return len(closing)

    def close_all(self) -> None:
        with self._lock:
            closing = self._open.take_all()
        del closing

    def reserve(
        self, page: PageId, size: int, group: str, *, disk_full: bool, admitted: bool | None
    ) -> Reservation[E]:
        """Asks for `size` bytes. `admitted` is None at first, then what the last answer said."""
        with self._lock:
            if self._index.get(page) is not None:
                return Reservation(Verdict.HERE, admitted)
            over = self.bytes + size - self._most_bytes
            beyond = self._beyond_quota(group, size)
            if admitted is None and (disk_full or beyond > 0 or self.bytes + size > self._high_bytes):
                admitted = self._policy.admit(page, size, group)
            if beyond > 0 and not admitted:
                return Reservation(Verdict.POLICY, admitted)
            if beyond > 0:
                victims, closing = self._choose_victims(beyond, group=group)
                return Reservation(Verdict.EVICT if victims else Verdict.FULL, admitted, victims)
            if over <= 0 and not disk_full:
                self.bytes += size
                self._count(group, size)
                return Reservation(Verdict.RESERVED, admitted)
            if not admitted:
                return Reservation(Verdict.POLICY, admitted)
            victims, closing = self._choose_victims(max(over, 0) or size)
        del closing
        return Reservation(Verdict.EVICT if victims else Verdict.FULL, admitted, victims)

    def add_found(self, found: Iterable[tuple[bytes, int, E]]) -> list[tuple[PageId, E]]:
        """Pages of an earlier process. Returns what is not needed: second files of one page."""
        with self._lock:
            index = self._index
            new, spare = index.add_found(found)
            for page, entry in new:
                size, group = index.size(entry), index.group(page, entry)
                self.bytes += size
                self._count(group, size)
                self._policy.track(page, size, group)
        return spare

    def adopt(self, enter: Callable[[], Mapping[str, int]]) -> None:
        """`enter` puts pages of an earlier process into the index and gives the bytes of each group. The
        policy hears of them by `track_found`, which takes longer than all else."""
        with self._lock:
            for group, size in enter().items():
                self.bytes += size
                self._count(group, size)

    def track_found(self, pages: Iterable[PageKey]) -> None:
        """Adopted pages, of which some may have left."""
        with self._lock:
            index, track = self._index, self._policy.track
            for page in pages:
                if (entry := index.get(page)) is not None:
                    track(page, index.size(entry), index.group(page, entry))

    def add(self, page: PageId, entry: E, path: str, group: str) -> None:
        """The page is in its place; its bytes were reserved, and it is not in the books yet."""
        with self._lock:
            key = self._index.add(page, entry, path, group)
            self._policy.track(key, self._index.size(entry), group)

    def move(self, page: PageId, entry: E, place: E) -> bool:
        """The page is at `place`, too, and from now on only there; False if it is not at `entry` any more."""
        with self._lock:
            if self._index.get(page) != entry:
                return False
            self._index.move(page, place)
            closing = self._open.pop(page)
        del closing
        return True

    def release(self, size: int, group: str = "") -> None:
        """Bytes that are not on disk, or not any more; of a group, if they were reserved and never added."""
        with self._lock:
            self.bytes -= size
            self._count(group, -size)

    def take(self, page: PageId, reason: str, *, entry: E | None = None) -> E | None:
        """The page leaves: unlink it, then `release`. With `entry` only if it still is that one."""
        with self._lock:
            known = self._index.get(page)
            if known is None or (entry is not None and known != entry):
                return None
            self._count(self._index.group(page, known), -self._index.size(known))
            self._index.pop(page)
            self._policy.forget(page)
            closing = self._open.pop(page)
            self._evictions[reason] += 1
        del closing
        return known

    def take_ahead(self, limit: int) -> list[tuple[PageId, E]]:
        """At most `limit` victims on the way to the low watermark, while the policy can spare them."""
        with self._lock:
            if self.bytes <= self._low_bytes:
                return []
            if self.bytes <= self._most_bytes and not self._policy.expendable():
                return []
            victims, closing = self._choose_victims(self.bytes - self._low_bytes, limit)
        del closing
        return victims

    def take_more(self, need: int) -> list[tuple[PageId, E]]:
        """Victims of so many bytes whatever the level is: for a disk whose room is in pieces."""
        with self._lock:
            victims, closing = self._choose_victims(need)
        del closing
        return victims

    def expendable(self) -> bool:
        """Whether the policy gives up pages ahead of need."""
        with self._lock:
            return self._policy.expendable()

    def _beyond_quota(self, group: str, size: int) -> int:
        quota = self._quotas.get(group)
        return 0 if quota is None else self._group_bytes[group] + size - quota

    def _count(self, group: str, size: int) -> None:
        if group in self._quotas:
            self._group_bytes[group] += size

    def _next_victim(self, group: str | None) -> PageKey | None:
        return self._policy.evict() if group is None else self._ranked.evict_from(group)

    def _choose_victims(
        self, need: int, limit: int = 1 << 30, *, group: str | None = None
    ) -> tuple[list[tuple[PageId, E]], list[StoredPage | None]]:
        """With `group`, of its own pages only."""
        victims: list[tuple[PageId, E]] = []
        closing: list[StoredPage | None] = []
        while need > 0 and len(victims) < limit and (key := self._next_victim(group)) is not None:
            page = PageId(*key)
            entry = self._index.get(page)
            assert entry is not None, f"the policy knew {page}, the index did not"
            size = self._index.size(entry)
            self._count(self._index.group(page, entry), -size)
            self._index.pop(page)
            victims.append((page, entry))
            closing.append(self._open.pop(page))
            need -= size
        if victims:
            self._evictions["capacity"] += len(victims)
        return victims, closing

    def shelter(self, file_id: bytes) -> None:
        """One more reason to keep the pages of a file, those that are here and those to come."""
        with self._lock:
            if not self._policy.keeps(file_id):
                self._told[file_id] = self._ranked.priority_of(file_id)
            self._policy.shelter(file_id, self._tracked(file_id))

    def prefer(self, file_id: bytes, priority: Priority) -> None:
        """The pages of a file, those that are here and those to come, leave before others or after them."""
        with self._lock:
            if self._policy.keeps(file_id):
                self._told[file_id] = priority
            elif self._ranked.priority_of(file_id) is not priority:
                self._ranked.prefer(file_id, priority, self._tracked(file_id))

    def _tracked(self, file_id: bytes) -> list[tuple[PageId, int, str]]:
        index, record = self._index, self._index.file(file_id)
        pages = index.pages_of([record]) if record is not None else ()
        known = [(page, entry) for page in pages if (entry := index.get(page)) is not None]
        return [(page, index.size(entry), index.group(page, entry)) for page, entry in known]

    def expose(self, file_id: bytes) -> None:
        """One reason less."""
        with self._lock:
            if (priority := self._told.get(file_id)) is not None:
                self._ranked.prefer(file_id, priority, ())
            self._policy.expose(file_id)
            if not self._policy.keeps(file_id):
                self._told.pop(file_id, None)

    def has_room(self, size: int, group: str) -> bool:
        """Whether so many bytes could come in, if need be in place of pages that nobody shelters."""
        with self._lock:
            quota = self._quotas.get(group, self._most_bytes)
            policy = self._policy
            return policy.bytes + size <= self._most_bytes and policy.bytes_of[group] + size <= quota

    def forget_directory(self, number: int) -> int:
        """The pages of a directory whose disk failed, which cannot be unlinked; their number."""
        with self._lock:
            pages = self._index.pages_in(number)
            closing = [self._open.pop(page) for page in pages]
            for page in pages:
                self._policy.forget(page)
                entry = self._index.get(page)
                assert entry is not None
                size = self._index.size(entry)
                self._count(self._index.group(page, entry), -size)
                self._index.pop(page)
                self.bytes -= size
            if pages:
                self._evictions["lost"] += len(pages)
        del closing
        return len(pages)

    @property
    def index(self) -> PageIndex[E]:
        """For looking through all pages without the lock: what it gives may be out of date at once."""
        return self._index

    def reject(self, reason: str) -> None:
        with self._lock:
            self._rejections[reason] += 1

    def damaged(self, where: str) -> None:
        with self._lock:
            self._corrupt[where] += 1

    def disk_error(self) -> None:
        with self._lock:
            self._disk_errors += 1

    def stats(self, *, loading: bool) -> StoreStats:
        with self._lock:
            return StoreStats(
                pages=len(self._index),
                bytes=self.bytes,
                capacity_bytes=self.capacity_bytes,
                evictions=dict(self._evictions),
                rejections=dict(self._rejections),
                corrupt=dict(self._corrupt),
                disk_errors=self._disk_errors,
                loading=loading,
            )
