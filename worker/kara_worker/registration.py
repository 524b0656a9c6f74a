"""A worker's entry in etcd: a lease that says it lives, and a record that keeps its place.

Each beat (a third of the lease's time to live) renews the lease, compares what etcd holds with what
it should hold and mends the difference, then looks after members whose worker is gone. All of it is
repeated until it is so; there is no state that an outage of etcd could leave half done.

Who may use an identity: one process at a time, and etcd decides by the lease. A process finds the
live record of another instance when
- the former process was killed and its lease has not run out. On the same directory of the same boot
  of the same host our directory lock proves that it is dead: a starting process replaces the record
  at once. From elsewhere (the volume moved to another host) it waits until the lease runs out.
- the page directory was copied and both run. Then the other one's lease is renewed before our eyes,
  and the newcomer is refused: `conflict` says who serves. It asks again every beat and gets its turn
  when the other leaves.
A process that was registered before and finds itself replaced never takes the record back while the
other lives, so two that believe themselves alone (a file system without locks) do not take turns.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from kara_cache.errors import FormatError, LeaseLost, MembershipError
from kara_cache.jitter import jitter
from kara_cache.membership.base import MemberState, WorkerInfo
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_json import KeyValue, Put, Range, Unchanged
from kara_cache.membership.records import (
    LiveRecord,
    MemberRecord,
    decode_live,
    encode_live,
    encode_member,
    live_prefix,
    member_prefix,
)
from kara_worker.janitor import Janitor
from kara_worker.lease import Lease, LeaseWitness

logger = logging.getLogger(__name__)


class LeaseState(str, enum.Enum):
    """Compares equal to its value."""

    NEVER = "never"  # not registered yet
    HELD = "held"  # renewed within its time to live
    LOST = "lost"  # was held; by now clients see us as passive


@dataclass(frozen=True, slots=True)
class RegistrationStats:
    """Counters since the start. reregistrations <= losses: a late renewal may find the lease still there."""

    keepalives: int  # renewals that etcd confirmed
    losses: int  # times that `lease_state` went from held to lost
    reregistrations: int  # leases after the first
    failures: int  # beats that ended in an error


class Registration:
    """Keeps one worker registered until `leave()` or `close()`. Thread-safe; not for forked children.

    `start()` does not wait for etcd: a worker serves without it and registers when etcd comes.
    """

    def __init__(
        self,
        client: EtcdClient,
        cluster: str,
        info: WorkerInfo,
        *,
        lease_ttl_s: float = 15,
        passive_grace_s: float = 600.0,
        directory: str = "",
        alluxio_port: int = 0,
        on_change: Callable[[LeaseState], None] | None = None,
    ) -> None:
        """
        Args:
            lease_ttl_s: after so long without a renewal clients skip the worker; rounded up to whole
                seconds, of which etcd gives 2 or more with its usual election timeout. 15 is Alluxio's
                `worker.failure.detection.timeout`.
            passive_grace_s: how long a worker whose lease ended keeps its place in the table. 600: a
                node's reboot or a slow rolling restart must not move data.
            directory: `DirectoryLock.fingerprint`; with "" the record of another instance is always
                waited for.
            alluxio_port: where Alluxio clients find `/v1/*`; 0 means `info.port`.
            on_change: called in the background thread after each change of `lease_state`.
        """
        if lease_ttl_s <= 0:
            raise ValueError(f"lease_ttl_s: want more than 0, got {lease_ttl_s}")
        self._client = client
        self._live_key = live_prefix(cluster) + info.id
        self._member_key = member_prefix(cluster) + info.id
        self._ttl_s = math.ceil(lease_ttl_s)
        self._record = LiveRecord(info, uuid.uuid4().hex, directory, alluxio_port)
        encode_live(self._record)  # refuses a bad id here rather than in the thread
        self._on_change = on_change
        sweep_s = min(2.0 * self._ttl_s, passive_grace_s / 4)
        self._janitor = Janitor(client, cluster, grace_s=passive_grace_s, every_s=sweep_s)
        self._lease: Lease | None = None
        self._witness: LeaseWitness | None = None
        self._conflict: MembershipError | None = None
        self._announced = LeaseState.NEVER
        self._changed = threading.Condition()  # guards _record; notified after changes of the two above
        self._keepalives = self._losses = self._leases = self._failures = 0
        self._wake = threading.Event()
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="kara-registration", daemon=True)

    def __repr__(self) -> str:
        info = self._record.info
        return f"<Registration {info.id} at {info.host}:{info.port}, lease {self.lease_state.value}>"

    def __enter__(self) -> Registration:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lease_state(self) -> LeaseState:
        """True at the moment of asking, also while a call to a silent etcd is still waiting."""
        lease = self._lease
        if lease is not None and lease.running:
            return LeaseState.HELD
        return LeaseState.LOST if self._leases else LeaseState.NEVER

    @property
    def conflict(self) -> MembershipError | None:
        """Set while another process serves under our identity."""
        return self._conflict

    def stats(self) -> RegistrationStats:
        return RegistrationStats(self._keepalives, self._losses, max(0, self._leases - 1), self._failures)

    def counters(self) -> dict[str, int]:
        """`stats()` by the label of a metric."""
        stats = self.stats()
        return {
            "keepalive": stats.keepalives,
            "loss": stats.losses,
            "reregistration": stats.reregistrations,
            "failure": stats.failures,
        }

    def start(self) -> Registration:
        self._thread.start()
        return self

    def wait_held(self, timeout_s: float) -> bool:
        """Whether we are registered by then.

        Raises:
            MembershipError: another process serves under our identity.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._conflict or self.lease_state == "held", timeout_s)
            if self._conflict is not None:
                raise self._conflict
            return self.lease_state is LeaseState.HELD

    def set_state(self, state: MemberState) -> None:
        """What clients shall see; returns at once, the background thread tells etcd."""
        if state is MemberState.PASSIVE:
            raise ValueError("passive is what a worker becomes when its lease ends: close() instead")
        with self._changed:
            self._record = replace(self._record, info=replace(self._record.info, state=state))
        self._wake.set()

    def close(self) -> None:
        """Ends the lease: clients see the worker as passive at once, and its place waits for it.

        Idempotent. When etcd does not answer, the lease runs out by itself.
        """
        if self._stop():
            self._revoke()

    def leave(self) -> None:
        """As `close()`, and gives up the place: the worker's share of the data moves now."""
        if not self._stop():
            return
        try:
            # The place first: the other way round clients would see us passive for a moment.
            self._client.delete(self._member_key)
        except MembershipError as exc:
            logger.warning("worker %s keeps its place for the grace time: %s", self._record.info.id, exc)
        self._revoke()

    def _stop(self) -> bool:
        """Whether this call was the one that ended it."""
        with self._changed:
            first, self._stopping = not self._stopping, True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(self._client.timeout_s + 1.0)  # a call that waits for a silent etcd
        return first

    def _revoke(self) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            lease.revoke()
        except MembershipError as exc:
            logger.warning("the lease runs out by itself in %d s: %s", self._ttl_s, exc)

    def _run(self) -> None:
        while True:
            self._wake.clear()  # before the beat: what is set during it asks for another one
            if self._stopping:
                return
            began = time.monotonic()
            next_s = self._try_beat()
            self._note_state()
            # Jitter, or workers that a restart of etcd brought in step would stay in step.
            next_s *= jitter(0.8, 1.0)
            self._wake.wait(max(self._ttl_s / 50, began + next_s - time.monotonic()))

    def _try_beat(self) -> float:
        """Seconds from the beginning of this beat to the next one."""
        try:
            next_s = self._beat()
            self._failing = False
            return next_s
        except MembershipError as exc:
            self._failures += 1
            if not self._failing:  # once for each outage
                logger.warning("registration does not get through, it keeps trying: %s", exc)
            self._failing = True
        except Exception:
            self._failures += 1
            logger.exception("registration failed, it keeps trying")
        return self._ttl_s * 0.15

    def _beat(self) -> float:
        if self._lease is not None:
            self._renew(self._lease)
        if self._lease is None:
            self._register()
        if self._lease is None:
            return self._ttl_s / 3 if self._conflict else min(1.0, self._ttl_s / 10)
        self._mend(self._lease)
        self._janitor.sweep_if_due()
        return self._ttl_s / 3

    def _renew(self, lease: Lease) -> None:
        try:
            lease.renew()
            self._keepalives += 1
        except LeaseLost as exc:
            self._drop_lease(str(exc))

    def _drop_lease(self, why: str) -> None:
        logger.warning("worker %s is no longer registered: %s", self._record.info.id, why)
        self._lease = None
        self._note_state()

    def _register(self) -> None:
        """Leaves `_lease` None where another process holds the identity."""
        current = self._client.get(self._live_key)
        if self._stopping or (current is not None and not self._may_replace(current)):
            return
        lease = Lease(self._client, self._ttl_s)
        record = self._record
        unchanged = Unchanged(self._live_key, current.mod_revision if current else 0)
        live = Put(self._live_key, encode_live(record), lease.id)
        place = Put(self._member_key, encode_member(MemberRecord(record.info)))
        if not self._client.txn([unchanged], then=[live, place]).succeeded:
            lease.revoke()
            raise MembershipError(f"{self._live_key} was written by another process just now")
        self._witness = None
        with self._changed:
            self._conflict = None
        self._leases += 1
        self._lease = lease
        info = record.info
        logger.info("worker %s registered at %s:%d, lease %x", info.id, info.host, info.port, lease.id)
        self._note_state()

    def _may_replace(self, current: KeyValue) -> bool:
        """Whether the live record is ours, nobody's or a dead process's; the module tells the rules."""
        try:
            record = decode_live(self._record.info.id, current.value)
        except FormatError as exc:
            logger.warning("%s holds what is no record, replaced: %s", self._live_key, exc)
            return True
        if record.instance == self._record.instance or not current.lease:
            return True
        starting = not self._leases
        if starting and record.directory and record.directory == self._record.directory:
            return True
        if self._witness is None or self._witness.lease_id != current.lease:
            self._witness = LeaseWitness(current.lease)
        self._witness.observe(self._client.time_to_live(current.lease), time.monotonic())
        if self._witness.alive and self._conflict is None:
            conflict = MembershipError(
                f"worker {record.info.id} is already served by {record.info.host}:{record.info.port}: "
                "was the page directory copied? Then remove IDENTITY from the copy"
            )
            logger.error("%s", conflict)
            with self._changed:
                self._conflict = conflict
                self._changed.notify_all()
        return False

    def _mend(self, lease: Lease) -> None:
        """Makes etcd hold what it should, whoever changed it: a hand, another process, a backup restored."""
        found = self._client.txn(then=[Range(self._live_key), Range(self._member_key)]).found
        (live, *_), (member, *_) = ((*one.items, None) for one in found)
        record = self._record
        if live is None or live.lease != lease.id:
            self._drop_lease("its record is gone" if live is None else "its record is another process's")
            self._wake.set()
            return
        if live.value != encode_live(record):
            put = Put(self._live_key, encode_live(record), lease.id)
            if not self._client.txn([Unchanged(self._live_key, live.mod_revision)], then=[put]).succeeded:
                self._wake.set()
        wanted = encode_member(MemberRecord(record.info))
        if member is None or member.value != wanted:
            self._client.put(self._member_key, wanted)

    def _note_state(self) -> None:
        state = self.lease_state
        if state is self._announced:
            return
        self._losses += state is LeaseState.LOST
        logger.info("lease of worker %s: %s", self._record.info.id, state.value)
        with self._changed:
            self._announced = state
            self._changed.notify_all()
        if self._on_change is not None:
            try:
                self._on_change(state)
            except Exception:
                logger.exception("on_change failed")
