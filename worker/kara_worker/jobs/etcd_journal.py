"""Load jobs in etcd: any worker of the cluster can read them, and go on with one whose worker is gone.

    /KaraCache/{cluster}/loads/active/{key}   a job that is not over; the key stands for its path
    /KaraCache/{cluster}/loads/held/{key}     under a lease of its coordinator: somebody is at it
    /KaraCache/{cluster}/loads/stop/{key}     the id of a job that is to end
    /KaraCache/{cluster}/loads/done/{key}     the last finished job of a path, for a week

Nothing of it is a lock. A coordinator writes only over what it wrote last, so one that was believed
dead and comes back finds out at its next writing and lets go. Until then two may send work, which
costs little: workers do not fetch what they have.
"""

from __future__ import annotations

import logging

from kara_cache.errors import FormatError, LeaseLost, MembershipError
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_json import Delete, KeyValue, Put, Range, Unchanged
from kara_cache.membership.records import cluster_prefix
from kara_worker.jobs.journal import Stored
from kara_worker.jobs.ledger import Record, decode_record, encode_record, key_of, names
from kara_worker.lease import Lease

log = logging.getLogger(__name__)

HOLD_TTL_S = 5  # a dead coordinator is replaced after this; renewed at a third of it
DONE_TTL_S = 7 * 86_400
_SUBMITS = 4  # attempts, each lost to another worker's write of the same path


class EtcdJournal:
    """Implements `Journal`. Thread-safe: `beat` belongs to one thread, the rest to any."""

    shared = True

    def __init__(self, client: EtcdClient, cluster: str, worker: str) -> None:
        self._client = client
        self._worker = worker.encode()
        prefix = f"{cluster_prefix(cluster)}loads/"
        self._active, self._held = f"{prefix}active/", f"{prefix}held/"
        self._stop, self._done = f"{prefix}stop/", f"{prefix}done/"
        self._lease: Lease | None = None
        self._renew_at = 0.0

    def submit(self, record: Record) -> Stored:
        key = key_of(record.job.path)
        for _ in range(_SUBMITS):
            known = self._client.get(self._active + key)
            if known is not None and (running := _decoded(known)) is not None:
                return Stored(running, known.mod_revision, held=True, stop=False)
            was = known.mod_revision if known is not None else 0
            writes: list[Range | Put | Delete] = [
                Put(self._active + key, encode_record(record)),
                Put(self._held + key, self._worker, self._lease_id()),
                Delete(self._stop + key),
            ]
            result = self._client.txn([Unchanged(self._active + key, was)], then=writes)
            if result.succeeded:
                return Stored(record, result.header.revision, held=True, stop=False)
        raise MembershipError(f"load job of {record.job.path}: others write it at the same time")

    def active(self) -> list[Stored]:
        ranges = [Range(prefix, prefix=True) for prefix in (self._active, self._held, self._stop)]
        jobs, held, stops = self._client.txn(then=ranges).found
        holders = {item.key.removeprefix(self._held) for item in held.items}
        to_stop = {item.key.removeprefix(self._stop): item.value.decode() for item in stops.items}
        found = []
        for item in jobs.items:
            record, key = _decoded(item), item.key.removeprefix(self._active)
            if record is not None:
                stop = to_stop.get(key) == record.job.id
                found.append(Stored(record, item.mod_revision, key in holders, stop))
        return found

    def find(self, path_or_id: str) -> Record | None:
        key = key_of(path_or_id)
        found = self._client.txn(then=[Range(self._active + key), Range(self._done + key)]).found
        for part in found:
            for item in part.items:
                record = _decoded(item)
                if record is not None and names(record.job, path_or_id):
                    return record
        return None

    def all(self) -> list[Record]:
        ranges = [Range(self._active, prefix=True), Range(self._done, prefix=True)]
        active, done = self._client.txn(then=ranges).found
        running = {item.key.removeprefix(self._active) for item in active.items}
        items = [*active.items, *(i for i in done.items if i.key.removeprefix(self._done) not in running)]
        return [record for item in items if (record := _decoded(item)) is not None]

    def claim(self, stored: Stored, record: Record) -> Stored | None:
        key = key_of(record.job.id)
        result = self._client.txn(
            [Unchanged(self._held + key, 0), Unchanged(self._active + key, stored.revision)],
            then=[
                Put(self._held + key, self._worker, self._lease_id()),
                Put(self._active + key, encode_record(record)),
            ],
        )
        return (
            Stored(record, result.header.revision, held=True, stop=stored.stop) if result.succeeded else None
        )

    def hold(self, stored: Stored) -> None:
        key = key_of(stored.record.job.id)
        self._client.txn(
            [Unchanged(self._held + key, 0), Unchanged(self._active + key, stored.revision)],
            then=[Put(self._held + key, self._worker, self._lease_id())],
        )

    def save(self, stored: Stored, record: Record) -> Stored | None:
        key = key_of(record.job.id)
        put = Put(self._active + key, encode_record(record))
        for _ in range(2):
            result = self._client.txn([Unchanged(self._active + key, stored.revision)], then=[put])
            if result.succeeded:
                return stored._replace(record=record, revision=result.header.revision)
            ours = self._ours(key, record)
            if ours is None:
                return None
            stored = stored._replace(revision=ours)
        return None

    def finish(self, stored: Stored, record: Record) -> bool:
        key = key_of(record.job.id)
        lease = self._client.grant(DONE_TTL_S)
        writes: list[Range | Put | Delete] = [
            Delete(self._active + key),
            Put(self._done + key, encode_record(record), lease),
            Delete(self._held + key),
            Delete(self._stop + key),
        ]
        for _ in range(2):
            if self._client.txn([Unchanged(self._active + key, stored.revision)], then=writes).succeeded:
                return True
            ours = self._ours(key, record)
            if ours is None:
                break
            stored = stored._replace(revision=ours)
        done = self._client.get(self._done + key)  # an earlier attempt may have got through unheard
        known = _decoded(done) if done is not None else None
        return known is not None and known.job.id == record.job.id

    def _ours(self, key: str, record: Record) -> int | None:
        """The revision of a writing of ours that we did not hear of; None where the job was taken."""
        item = self._client.get(self._active + key)
        known = _decoded(item) if item is not None else None
        return item.mod_revision if item and known is not None and known.claim == record.claim else None

    def ask_stop(self, record: Record) -> None:
        self._client.put(self._stop + key_of(record.job.id), record.job.id.encode())

    def release(self, stored: Stored, record: Record) -> None:
        saved = self.save(stored, record)
        if saved is not None:
            key = key_of(record.job.id)
            self._client.txn([Unchanged(self._active + key, saved.revision)], then=[Delete(self._held + key)])

    def beat(self) -> None:
        lease = self._lease
        if lease is None:
            return
        try:
            if lease.left_s < HOLD_TTL_S * 2 / 3:
                lease.renew()
        except LeaseLost:
            log.warning("the lease on load jobs ran out; they are taken up again if nobody else did")
            self._lease = None

    def close(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                lease.revoke()
            except MembershipError as exc:
                log.debug("load jobs: %s", exc)
        self._client.close()

    def _lease_id(self) -> int:
        lease = self._lease
        if lease is None:
            lease = self._lease = Lease(self._client, HOLD_TTL_S)
        return lease.id


def _decoded(item: KeyValue) -> Record | None:
    try:
        return decode_record(item.value)
    except FormatError as exc:
        log.warning("%s: %s", item.key, exc)
        return None
