"""Where the errands of a load go while workers come and go, without a network and by a clock of our own."""

from __future__ import annotations

from dataclasses import replace

from kara_cache.cluster import Cluster
from kara_cache.membership.base import MembershipView, MemberState, WorkerInfo
from kara_cache.suspects import Suspects
from kara_cache.transport.worker_link import Transport
from kara_cache.ufs.base import FileInfo
from kara_worker.jobs.destinations import Destinations
from kara_worker.jobs.errand import Errand, errands_of
from kara_worker.jobs.feed import Chunk

PATIENCE_S = 20.0
WORKERS = tuple(WorkerInfo(f"{number:032x}", "127.0.0.1", 1000 + number) for number in range(1, 4))


class Members:
    """A `Membership` that says what the test says."""

    def __init__(self) -> None:
        self.now = MembershipView(WORKERS, 1, "static")

    def view(self) -> MembershipView:
        return self.now

    def close(self) -> None:
        pass

    def become(self, worker: str, state: MemberState | None) -> None:
        """None: it is gone."""
        workers = (replace(w, state=state) if w.id == worker and state else w for w in self.now.workers)
        kept = tuple(w for w in workers if state is not None or w.id != worker)
        self.now = MembershipView(kept, self.now.revision + 1, "static")


class Scene:
    def __init__(self) -> None:
        self.members = Members()
        self.clock = 0.0
        transport = Transport(connect_timeout_s=1.0, stall_timeout_s=1.0, connections=1)
        self.cluster = Cluster(self.members, transport, Suspects(0.0))
        self.destinations = Destinations(self.cluster, patience_s=PATIENCE_S, clock=lambda: self.clock)
        chunk = Chunk([FileInfo("/m/f", 10, "v")], copies=2)
        (self.errand,) = errands_of(chunk, whole_files=False)
        self.owners = self.cluster.owners(self.cluster.table(), "/m/f")

    def to(self, errand: Errand | None = None) -> str | None:
        return self.destinations.of(errand or self.errand)


def test_the_owner_of_the_rank_gets_it() -> None:
    scene = Scene()
    (copy,) = scene.errand.copies(scene.owners[0])
    assert [scene.to(), scene.to(copy)] == list(scene.owners[:2])


def test_a_worker_whose_lease_has_ended_is_waited_for() -> None:
    """All of a cluster restarted, slower than a lease: what the first one back would fetch in the place of
    the others they would fetch again."""
    scene = Scene()
    first = scene.owners[0]
    scene.members.become(first, MemberState.PASSIVE)
    assert scene.to() is None
    scene.clock += PATIENCE_S - 1
    assert scene.to() is None
    scene.members.become(first, MemberState.ACTIVE)
    assert scene.to() == first


def test_patience_has_an_end_and_is_of_the_worker_not_of_each_errand() -> None:
    scene = Scene()
    first, second = scene.owners[:2]
    scene.members.become(first, MemberState.PASSIVE)
    assert scene.to() is None
    scene.clock += PATIENCE_S
    assert scene.to() == second
    (late,) = errands_of(Chunk([FileInfo("/m/f", 10, "v")]), whole_files=False)
    assert scene.to(late) == second
    scene.members.become(first, MemberState.ACTIVE)
    assert scene.to() == first
    scene.destinations.answered(first)
    scene.members.become(first, MemberState.PASSIVE)
    assert scene.to() is None  # it has answered since


def test_who_is_gone_or_drains_is_not_waited_for() -> None:
    scene = Scene()
    scene.members.become(scene.owners[0], MemberState.DRAINING)
    assert scene.to() == scene.owners[1]
    scene.members.become(scene.owners[1], None)
    assert scene.to() == scene.owners[2]


def test_copies_are_of_workers_that_are_there() -> None:
    scene = Scene()
    assert [scene.destinations.copies(count) for count in (1, 2, 9)] == [1, 2, 3]
    scene.members.become(scene.owners[0], MemberState.PASSIVE)
    assert scene.destinations.copies(9) == 2
