"""Leases of etcd: ours, and what can be told of another's from outside."""

from __future__ import annotations

import time

from kara_cache.errors import LeaseLost
from kara_cache.membership.etcd import EtcdClient

# etcd tells whole seconds, rounded down, so an end that never moved seems to move by less than 1 s.
_MOVED_S = 1.5
# One renewal is no proof of life: a new leader of etcd gives every lease its full time again.
_RENEWALS_OF_THE_LIVING = 2


class Lease:
    """Granted at construction, by one request. Its time is kept by the monotonic clock, which no
    clock change moves, and counted from before each request: it cannot run out earlier than we think."""

    def __init__(self, client: EtcdClient, ttl_s: int) -> None:
        self._client = client
        self.ttl_s = ttl_s
        asked = time.monotonic()
        self.id = client.grant(ttl_s)
        self._ends = asked + ttl_s

    @property
    def running(self) -> bool:
        """False: unless etcd was down meanwhile, it has run out."""
        return time.monotonic() < self._ends

    @property
    def left_s(self) -> float:
        return self._ends - time.monotonic()

    def renew(self) -> None:
        """Raises LeaseLost when etcd no longer knows it, MembershipError when etcd does not answer."""
        asked = time.monotonic()
        ttl_s = self._client.keepalive(self.id)
        if ttl_s <= 0:
            raise LeaseLost(f"lease {self.id:x} ran out")
        self._ends = asked + ttl_s

    def revoke(self) -> None:
        self._client.revoke(self.id)


class LeaseWitness:
    """Watches a lease that is not ours, to tell a process that renews it from one that is dead."""

    def __init__(self, lease_id: int) -> None:
        self.lease_id = lease_id
        self.renewals = 0
        self._ends: float | None = None

    @property
    def alive(self) -> bool:
        """Proven; False means not proven yet."""
        return self.renewals >= _RENEWALS_OF_THE_LIVING

    def observe(self, remaining_s: int, now: float) -> None:
        """`remaining_s` as etcd tells it at `now` (monotonic). 0 proves nothing: it is about to go."""
        if remaining_s <= 0:
            return
        ends = now + remaining_s
        if self._ends is None:
            self._ends = ends
        elif ends > self._ends + _MOVED_S:
            self.renewals += 1
            self._ends = ends
