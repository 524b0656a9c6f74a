"""The cluster's records as last read from etcd, live workers and members, and the view they make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kara_cache.errors import FormatError
from kara_cache.membership.base import WorkerInfo
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_json import Header, KeyEvent, KeyValue, Range
from kara_cache.membership.records import (
    LiveRecord,
    MemberRecord,
    as_passive,
    decode_live,
    decode_member,
    live_prefix,
    member_prefix,
)

logger = logging.getLogger(__name__)

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Entry(Generic[_Record]):
    """A record and the revision at which etcd took it, for conditional writes."""

    record: _Record
    mod_revision: int
    lease: int


class _Section(Generic[_Record]):
    """The keys below one prefix: those that are ours by worker id, and a count of all of them."""

    def __init__(self, prefix: str, decode: Callable[[str, bytes], _Record]) -> None:
        self.prefix = prefix
        self.entries: dict[str, Entry[_Record]] = {}
        self.revision = 0  # every change of these keys up to here is in `entries`
        self._decode = decode
        self._revisions: dict[str, int] = {}  # of every key, readable or not
        self._warned: set[str] = set()  # one warning for each key that was never ours

    def __len__(self) -> int:
        return len(self._revisions)

    def replace(self, items: Iterable[KeyValue], revision: int) -> None:
        self.revision = revision
        self._revisions.clear()
        self.entries.clear()
        for item in items:
            self._put(item)
        self._warned &= self._revisions.keys()

    def apply(self, event: KeyEvent) -> None:
        if not event.key.startswith(self.prefix) or event.mod_revision <= self._revisions.get(event.key, 0):
            return
        self.revision = max(self.revision, event.mod_revision)
        if event.item is not None:
            self._put(event.item)
            return
        self._revisions.pop(event.key, None)
        self.entries.pop(event.key[len(self.prefix) :], None)

    def _put(self, item: KeyValue) -> None:
        worker_id = item.key[len(self.prefix) :]
        self._revisions[item.key] = item.mod_revision
        try:
            record = self._decode(worker_id, item.value)
        except FormatError as exc:
            self.entries.pop(worker_id, None)
            if item.key not in self._warned:
                self._warned.add(item.key)
                logger.warning("etcd key %r skipped, not one of our workers: %s", item.key, exc)
            return
        self.entries[worker_id] = Entry(record, item.mod_revision, item.lease)


class Roster:
    """Not thread-safe: each belongs to the one thread that reads etcd."""

    def __init__(self, client: EtcdClient, cluster: str) -> None:
        self._client = client
        self._live = _Section(live_prefix(cluster), decode_live)
        self._members = _Section(member_prefix(cluster), decode_member)
        self._header: Header | None = None  # of the last complete reading

    @property
    def _sections(self) -> tuple[_Section[LiveRecord], _Section[MemberRecord]]:
        return self._live, self._members

    @property
    def prefixes(self) -> tuple[str, str]:
        return self._live.prefix, self._members.prefix

    @property
    def revision(self) -> int:
        """The newest revision of etcd that is in here; 0 before the first reading."""
        return max(section.revision for section in self._sections)

    @property
    def live(self) -> dict[str, Entry[LiveRecord]]:
        return self._live.entries

    @property
    def members(self) -> dict[str, Entry[MemberRecord]]:
        return self._members.entries

    def refresh(self) -> bool:
        """Catches up with etcd at one revision; False when a small question showed that nothing changed.

        A reading costs about 1 KiB for each worker and every client does one after every quiet half
        minute, so the question matters: how many keys are there, and which were written since?
        """
        if self._header is not None and self._is_current(self._header):
            return False
        self.read()
        return True

    def read(self) -> None:
        """Reads everything, at one revision. To be preferred where etcd was away: one that lost its data
        and was told everything again may answer the small question as if nothing had happened."""
        result = self._client.txn(then=[Range(prefix, prefix=True) for prefix in self.prefixes])
        live, members = result.found
        self._live.replace(live.items, result.header.revision)
        self._members.replace(members.items, result.header.revision)
        self._header = result.header

    def _is_current(self, known: Header) -> bool:
        # Each prefix since its own revision: a watch may have shown the one further than the other.
        questions = [
            Range(section.prefix, prefix=True, min_mod_revision=section.revision + 1, keys_only=True)
            for section in self._sections
        ]
        result = self._client.txn(then=questions)
        now = result.header
        # Restored from a backup, etcd is another cluster or starts again below what we know.
        restored = (
            now.cluster_id != known.cluster_id
            or now.revision < self.revision
            or now.raft_term < known.raft_term
        )
        written = any(found.items for found in result.found)
        counts = [found.count for found in result.found]
        if restored or written or counts != [len(self._live), len(self._members)]:
            return False
        for section in self._sections:
            section.revision = now.revision
        self._header = now
        return True

    def apply(self, events: Iterable[KeyEvent]) -> None:
        """Changes seen by a watch of `prefixes` that began at `revision + 1` right after `refresh`."""
        for event in events:
            self._live.apply(event)
            self._members.apply(event)

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Sorted by id: whoever holds a lease as it says of itself, the other members as passive."""
        found = {worker_id: as_passive(entry.record) for worker_id, entry in self.members.items()}
        found.update((worker_id, entry.record.info) for worker_id, entry in self.live.items())
        return tuple(found[worker_id] for worker_id in sorted(found))
