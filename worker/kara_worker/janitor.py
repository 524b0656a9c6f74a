"""Looks after members whose worker is gone: notes since when, and takes their place away in the end.

Every live worker does this; each write happens only if nothing changed meanwhile, so one of them wins
and all clients see the same. Time is measured by whoever watches, on the monotonic clock, from the
first time it saw the member passive: a wrong wall clock removes nobody. The price: when all workers
restart, the grace time begins again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from kara_cache.jitter import jitter
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_json import Delete, Put, Unchanged
from kara_cache.membership.records import MemberRecord, encode_member
from kara_cache.membership.roster import Entry, Roster

logger = logging.getLogger(__name__)


class Janitor:
    """For one thread. A sweep costs one small request when nothing changed since the last one."""

    def __init__(
        self,
        client: EtcdClient,
        cluster: str,
        *,
        grace_s: float,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._roster = Roster(client, cluster)
        self._live_prefix, self._member_prefix = self._roster.prefixes
        self._grace_s = grace_s
        self._every_s = every_s
        self._clock = clock
        self._next = 0.0
        self._seen: dict[str, tuple[int, float]] = {}  # id -> revision of its passive record, first seen

    def sweep_if_due(self) -> None:
        """Raises MembershipError when etcd does not answer."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + self._every_s * jitter(0.5, 1.0)
        self.sweep()

    def sweep(self) -> None:
        self._roster.refresh()
        now = self._clock()
        absent = {
            worker_id: entry
            for worker_id, entry in self._roster.members.items()
            if worker_id not in self._roster.live
        }
        self._seen = {worker_id: seen for worker_id, seen in self._seen.items() if worker_id in absent}
        for worker_id, entry in absent.items():
            if not entry.record.passive_since:
                self._mark(worker_id, entry)
                continue
            revision, since = self._seen.setdefault(worker_id, (entry.mod_revision, now))
            if revision != entry.mod_revision:  # it came back and left again between two sweeps
                self._seen[worker_id] = (entry.mod_revision, now)
            elif now - since >= self._grace_s:
                self._remove(worker_id, entry)

    def _mark(self, worker_id: str, entry: Entry[MemberRecord]) -> None:
        record = replace(entry.record, passive_since=round(time.time(), 3))
        put = Put(self._member_prefix + worker_id, encode_member(record))
        if self._client.txn(self._unchanged(worker_id, entry), then=[put]).succeeded:
            logger.info("worker %s is passive, its place stays for %g s", worker_id, self._grace_s)

    def _remove(self, worker_id: str, entry: Entry[MemberRecord]) -> None:
        delete = Delete(self._member_prefix + worker_id)
        if self._client.txn(self._unchanged(worker_id, entry), then=[delete]).succeeded:
            logger.info("worker %s stayed away for %g s, its place is given up", worker_id, self._grace_s)

    def _unchanged(self, worker_id: str, entry: Entry[MemberRecord]) -> list[Unchanged]:
        """Not alive again, and its record still the one that we judged."""
        return [
            Unchanged(self._live_prefix + worker_id, 0),
            Unchanged(self._member_prefix + worker_id, entry.mod_revision),
        ]
