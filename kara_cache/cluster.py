"""The workers as this process sees them now: their clients, who owns what, and whom to ask in which order."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kara_cache.cached_file import CachedFile
from kara_cache.membership.base import Membership, MembershipView, MemberState, WorkerInfo
from kara_cache.placement import Placement
from kara_cache.stripe import stripe_key
from kara_cache.suspects import Suspects
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.transport.worker_link import Transport

RANKS = 3
_KEEPERS = 2  # owners that may store what they fetched: the first, and who takes over if it never returns
_SPARES = 2  # workers that own nothing here but may read through, before a call gives up on workers


@dataclass(frozen=True, slots=True)
class Table:
    """What one membership view says; replaced as a whole, never changed."""

    view: MembershipView
    placement: Placement
    weights: dict[str, int]
    clients: dict[str, WorkerClient]  # by id; all members, whatever their state
    live: frozenset[str]  # ids of those that take work


class Cluster:
    """Thread-safe; usable in a forked child after `after_fork`."""

    def __init__(self, membership: Membership, transport: Transport, suspects: Suspects) -> None:
        self.membership = membership
        self.suspects = suspects
        self._transport = transport
        self._turn = random.SystemRandom().randrange(1 << 30)  # so that processes spread over the replicas
        self._table: Table | None = None
        self._building = threading.Lock()  # guards the change of _table

    def __repr__(self) -> str:
        table = self._table
        if table is None:
            return "<Cluster unseen>"
        return f"<Cluster {len(table.live)} of {len(table.clients)} workers live, {self.suspects}>"

    def table(self) -> Table:
        """The current table. Only the first call of a process may wait for a placement to be built."""
        view = self.membership.view()
        table = self._table
        if table is not None and table.view is view:
            return table
        # building takes a tenth of a second: meanwhile other threads go on with the table they had
        if not self._building.acquire(blocking=table is None):
            assert table is not None
            return table
        try:
            if self._table is None or self._table.view is not view:
                self._replace(view)
            assert self._table is not None
            return self._table
        finally:
            self._building.release()

    def _replace(self, view: MembershipView) -> None:
        old = self._table
        weights = {worker.id: worker.capacity_bytes for worker in view.workers}
        known = old.clients if old is not None else {}
        clients = {}
        for worker in view.workers:
            client = known.get(worker.id)
            if client is None or not _same_place(client.worker, worker):
                client = WorkerClient(worker, self._transport)
            clients[worker.id] = client
        self._table = Table(
            view=view,
            placement=old.placement
            if old is not None and old.weights == weights
            else Placement.build(weights, ranks=RANKS),
            weights=weights,
            clients=clients,
            live=frozenset(w.id for w in view.workers if w.state is MemberState.ACTIVE),
        )
        for client in known.values():
            if clients.get(client.id) is not client:
                client.close()

    def owners(self, table: Table, path: str, stripe: int = 0) -> tuple[str, ...]:
        """Ids of the ranked owners of a stripe."""
        return table.placement.owners(stripe_key(path, stripe), RANKS)

    def owners_of(self, table: Table, file: CachedFile, stripe: int) -> tuple[str, ...]:
        """The same, remembered with the file. Replicas come in an order of this process's own."""
        placement, routes = file.routes
        if placement is not table.placement:
            routes = {}
            file.routes = table.placement, routes
        owners = routes.get(stripe)
        if owners is None:
            owners = self.turned(self.owners(table, file.path, stripe), file.replicas, stripe)
            routes[stripe] = owners
        return owners

    def turned(self, owners: tuple[str, ...], replicas: int, stripe: int) -> tuple[str, ...]:
        """The same, with those that keep the stripe's pages in an order of this process's own."""
        equals = owners[:replicas]
        if len(equals) < 2:
            return owners
        turn = (self._turn + stripe) % len(equals)
        return equals[turn:] + equals[:turn] + owners[replicas:]

    def first(self, table: Table, owners: tuple[str, ...]) -> WorkerClient | None:
        """The first of `candidates`, if it is an owner."""
        for worker_id in owners:
            if worker_id in table.live and not self.suspects.avoid(worker_id):
                return table.clients[worker_id]
        return None

    def candidates(
        self, table: Table, owners: tuple[str, ...], asked: Collection[str] = ()
    ) -> Iterator[tuple[WorkerClient, bool]]:
        """Workers to ask, best first, and whether each should keep what it fetches.

        Suspects are left out, and `asked`, who were asked before and count among those that keep.
        Owners by rank, then a few of the others, taken from the first owner's place in the order of
        ids on, so that the keys of a dead worker fall on all.
        """
        keepers = _KEEPERS - len(asked)
        for worker_id in owners:
            if worker_id not in asked and worker_id in table.live and not self.suspects.avoid(worker_id):
                yield table.clients[worker_id], keepers > 0
                keepers -= 1
        spares = _SPARES
        for worker_id in _others(table, owners):
            if not spares:
                return
            if worker_id in table.live and not self.suspects.avoid(worker_id):
                yield table.clients[worker_id], False
                spares -= 1

    def last_resort(
        self, table: Table, owners: tuple[str, ...], asked: set[str]
    ) -> Iterator[tuple[WorkerClient, bool]]:
        """Those that `candidates` left out, for a call that has nothing else: a suspect may be well again."""
        left = [worker_id for worker_id in (*owners, *_others(table, owners)) if worker_id not in asked]
        for worker_id in left[: RANKS + _SPARES]:
            yield table.clients[worker_id], worker_id in owners[:_KEEPERS]

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._building = threading.Lock()
        if self._table is not None:
            for client in self._table.clients.values():
                client.after_fork()

    def close(self) -> None:
        table = self._table
        if table is not None:
            for client in table.clients.values():
                client.close()


def _others(table: Table, owners: tuple[str, ...]) -> Iterator[str]:
    order = table.placement.workers
    turn = order.index(owners[0]) if owners else 0
    for worker_id in order[turn:] + order[:turn]:
        if worker_id not in owners:
            yield worker_id


def _same_place(old: WorkerInfo, new: WorkerInfo) -> bool:
    return (old.host, old.port, old.socket_path, old.boot_id) == (
        new.host,
        new.port,
        new.socket_path,
        new.boot_id,
    )
