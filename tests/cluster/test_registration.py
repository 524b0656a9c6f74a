from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import etcd_servers
import pytest
from etcd_servers import Link, client, member, states, until, worker

from kara_cache.errors import MembershipError
from kara_cache.membership.base import MembershipView, MemberState, WorkerInfo
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_membership import EtcdMembership
from kara_cache.membership.records import decode_live, decode_member, live_prefix, member_prefix
from kara_worker.identity import DirectoryLock, load_or_create_identity
from kara_worker.janitor import Janitor
from kara_worker.registration import LeaseState, Registration
from kara_worker.testing.etcd_server import EtcdServer

pytestmark = pytest.mark.etcd

WAIT_S = 20.0
LONG_S = 3600  # a lease that no test waits for: what happens under it happens without waiting


@pytest.fixture(scope="module", params=etcd_servers.RELEASES)
def etcd(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    with etcd_servers.server(request.param) as server:
        yield server


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    """One that a test may stop or pause."""
    with etcd_servers.server() as server:
        yield server


@pytest.fixture
def cluster() -> str:
    return f"c-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def operator(etcd: EtcdServer) -> Iterator[EtcdClient]:
    with client(etcd.url) as made:
        yield made


Enter = Callable[..., Registration]


@pytest.fixture
def enter(cluster: str) -> Iterator[Enter]:
    """Starts a registration that is closed at the end."""
    with ExitStack() as stack:

        def make(url: str, info: WorkerInfo, *, timeout_s: float = 2.0, **options: object) -> Registration:
            etcd_client = stack.enter_context(client(url, timeout_s=timeout_s))
            options.setdefault("lease_ttl_s", LONG_S)
            return stack.enter_context(Registration(etcd_client, cluster, info, **options))  # type: ignore[arg-type]

        yield make


@contextmanager
def following(url: str, cluster: str) -> Iterator[EtcdMembership]:
    with client(url) as etcd_client:
        membership = EtcdMembership(etcd_client, cluster, state_dir=None)
        try:
            yield membership
        finally:
            membership.close()


@pytest.fixture
def seen(etcd: EtcdServer, cluster: str) -> Iterator[EtcdMembership]:
    """The cluster as clients see it."""
    with following(etcd.url, cluster) as membership:
        yield membership


def are(expected: dict[int, str]) -> Callable[[MembershipView], bool]:
    return lambda view: states(view) == expected


def test_a_worker_is_seen_as_it_describes_itself(
    etcd: EtcdServer, seen: EtcdMembership, enter: Enter
) -> None:
    info = replace(worker(1, port=7001), socket_path="/run/k.sock", boot_id="b", admin_port=9, software="0.1")
    registration = enter(etcd.url, info)
    assert registration.wait_held(WAIT_S)

    assert seen.wait_for(are({1: "active"}), WAIT_S).workers == (info,)
    assert registration.lease_state == "held"
    assert registration.conflict is None
    assert "lease held" in repr(registration)


def test_alluxio_clients_find_their_fields(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, enter: Enter
) -> None:
    """What `alluxiofs` up to 1.0.17 reads of every value under the prefix, by its own defaults."""
    enter(etcd.url, worker(1, port=7001), alluxio_port=28081).wait_held(WAIT_S)
    enter(etcd.url, worker(2, port=7002)).wait_held(WAIT_S)
    found = {}
    for item in operator.list(f"/ServiceDiscovery/{cluster}/"):
        value = json.loads(item.value)
        address = value["WorkerNetAddress"]
        identity = (int(value["Identity"]["version"]), bytes.fromhex(value["Identity"]["identifier"]))
        found[identity] = (address.get("Host", "localhost"), address.get("HttpServerPort", 28080))
        assert item.lease
    assert found == {
        (1, bytes.fromhex(worker(1).id)): ("127.0.0.1", 28081),
        (1, bytes.fromhex(worker(2).id)): ("127.0.0.1", 7002),
    }


def test_a_draining_worker_says_so_at_once(etcd: EtcdServer, seen: EtcdMembership, enter: Enter) -> None:
    registration = enter(etcd.url, worker(1))
    seen.wait_for(are({1: "active"}), WAIT_S)
    registration.set_state(MemberState.DRAINING)
    seen.wait_for(are({1: "draining"}), WAIT_S)
    with pytest.raises(ValueError, match="passive"):
        registration.set_state(MemberState.PASSIVE)


def test_a_closed_worker_is_passive_at_once_and_keeps_its_place(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, seen: EtcdMembership, enter: Enter
) -> None:
    registration = enter(etcd.url, worker(1))
    seen.wait_for(are({1: "active"}), WAIT_S)
    registration.close()
    registration.close()
    seen.wait_for(are({1: "passive"}), WAIT_S)
    assert registration.lease_state is LeaseState.LOST

    enter(etcd.url, worker(1, port=2))
    view = seen.wait_for(are({1: "active"}), WAIT_S)
    assert view.workers[0].port == 2


def test_who_leaves_is_gone_at_once(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, seen: EtcdMembership, enter: Enter
) -> None:
    views: list[dict[int, str]] = []
    registration = enter(etcd.url, worker(1))
    seen.wait_for(are({1: "active"}), WAIT_S)
    registration.leave()
    seen.wait_for(lambda view: bool(views.append(states(view))) or not view.workers, WAIT_S)
    assert {1: "passive"} not in views
    assert operator.list(member_prefix(cluster)) == ()


REGISTER = """
import sys
from kara_cache.membership.base import WorkerInfo
from kara_cache.membership.etcd import EtcdClient
from kara_worker.registration import Registration
url, cluster, number, port, ttl_s = sys.argv[1:]
info = WorkerInfo(f"{int(number):032x}", "127.0.0.1", int(port))
with Registration(EtcdClient([url]), cluster, info, lease_ttl_s=int(ttl_s)) as registration:
    print(registration.wait_held(20), flush=True)
    sys.stdin.read()
"""


@contextmanager
def worker_process(
    url: str, cluster: str, number: int, *, ttl_s: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is registered as worker `number`; killed at the end."""
    arguments = [url, cluster, str(number), "7000", str(ttl_s)]
    with subprocess.Popen(
        [sys.executable, "-c", REGISTER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"True\n"
            yield process
        finally:
            process.kill()


def test_a_killed_worker_is_passive_and_after_the_grace_gone(
    etcd: EtcdServer, cluster: str, seen: EtcdMembership, enter: Enter
) -> None:
    enter(etcd.url, worker(1), lease_ttl_s=1, passive_grace_s=1.0)
    with worker_process(etcd.url, cluster, 2) as process:
        seen.wait_for(are({1: "active", 2: "active"}), WAIT_S)
        process.send_signal(signal.SIGKILL)
        seen.wait_for(are({1: "active", 2: "passive"}), WAIT_S)
        seen.wait_for(are({1: "active"}), WAIT_S)


def test_a_worker_that_was_paused_comes_back_by_itself(
    etcd: EtcdServer, cluster: str, seen: EtcdMembership
) -> None:
    with worker_process(etcd.url, cluster, 2) as process:
        seen.wait_for(are({2: "active"}), WAIT_S)
        process.send_signal(signal.SIGSTOP)
        seen.wait_for(are({2: "passive"}), WAIT_S)
        process.send_signal(signal.SIGCONT)
        seen.wait_for(are({2: "active"}), WAIT_S)


def test_without_anybody_left_the_place_of_the_last_worker_stays(
    etcd: EtcdServer, cluster: str, seen: EtcdMembership, enter: Enter
) -> None:
    enter(etcd.url, worker(1), passive_grace_s=0.01).wait_held(WAIT_S)
    view = seen.wait_for(are({1: "active"}), WAIT_S)
    assert view.workers


def test_a_worker_starts_without_etcd_and_registers_when_it_comes(
    own_etcd: EtcdServer, cluster: str, enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    own_etcd.kill()
    registration = enter(own_etcd.url, worker(1), lease_ttl_s=1)
    until(lambda: registration.stats().failures > 2)
    assert not registration.wait_held(0)
    assert registration.lease_state == "never"
    assert caplog.text.count("does not get through") == 1

    own_etcd.start()
    assert registration.wait_held(WAIT_S)
    with following(own_etcd.url, cluster) as seen:
        seen.wait_for(are({1: "active"}), WAIT_S)


def test_a_lease_that_ran_out_in_an_outage_is_replaced(
    own_etcd: EtcdServer, cluster: str, enter: Enter
) -> None:
    told: list[LeaseState] = []
    changed = threading.Condition()

    def on_change(state: LeaseState) -> None:
        with changed:
            told.append(state)
            changed.notify_all()

    with Link(own_etcd.port) as link, following(own_etcd.url, cluster) as seen:
        registration = enter(link.url, worker(1), lease_ttl_s=1, on_change=on_change)
        assert registration.wait_held(WAIT_S)
        seen.wait_for(are({1: "active"}), WAIT_S)
        link.cut()
        seen.wait_for(are({1: "passive"}), WAIT_S)
        with changed:
            assert changed.wait_for(lambda: told == ["held", "lost"], WAIT_S)
        assert registration.lease_state == "lost"

        link.heal()
        seen.wait_for(are({1: "active"}), WAIT_S)
        with changed:
            assert changed.wait_for(lambda: told == ["held", "lost", "held"], WAIT_S)
    stats = registration.stats()
    assert (stats.losses, stats.reregistrations) == (1, 1)
    assert registration.counters()["loss"] == 1


def test_a_callback_that_fails_does_not_end_the_registration(
    etcd: EtcdServer, seen: EtcdMembership, enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    def on_change(state: LeaseState) -> None:
        raise RuntimeError("mine")

    registration = enter(etcd.url, worker(1), on_change=on_change)
    seen.wait_for(are({1: "active"}), WAIT_S)
    registration.set_state(MemberState.DRAINING)
    seen.wait_for(are({1: "draining"}), WAIT_S)
    assert "on_change failed" in caplog.text


def test_the_lease_survives_a_restart_of_etcd(own_etcd: EtcdServer, cluster: str, enter: Enter) -> None:
    registration = enter(own_etcd.url, worker(1), lease_ttl_s=5)
    assert registration.wait_held(WAIT_S)
    own_etcd.kill()
    own_etcd.start()
    renewed = registration.stats().keepalives
    until(lambda: registration.stats().keepalives > renewed + 1)
    assert registration.stats().reregistrations == 0
    assert registration.lease_state == "held"


def test_an_etcd_that_lost_everything_is_told_again(own_etcd: EtcdServer, cluster: str, enter: Enter) -> None:
    with following(own_etcd.url, cluster) as seen:
        registrations = [enter(own_etcd.url, worker(n), lease_ttl_s=1) for n in range(3)]
        everybody = dict.fromkeys(range(3), "active")
        seen.wait_for(are(everybody), WAIT_S)
        own_etcd.forget()
        own_etcd.start()
        until(lambda: all(registration.stats().reregistrations for registration in registrations))
        seen.wait_for(are(everybody), WAIT_S)
    with client(own_etcd.url) as operator:
        until(lambda: len(operator.list(member_prefix(cluster))) == 3)


def test_what_a_hand_broke_in_etcd_is_mended(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, seen: EtcdMembership, enter: Enter
) -> None:
    registration = enter(etcd.url, worker(1), lease_ttl_s=1)
    live, place = live_prefix(cluster) + worker(1).id, member_prefix(cluster) + worker(1).id

    def mended() -> bool:
        alive, member = operator.get(live), operator.get(place)
        try:
            return (
                alive is not None
                and alive.lease != 0
                and decode_live(worker(1).id, alive.value).info == worker(1)
                and member is not None
                and decode_member(worker(1).id, member.value).info == worker(1)
            )
        except Exception:
            return False

    until(mended)
    for damage in (
        lambda: operator.delete(live),
        lambda: operator.delete(place),
        lambda: operator.put(live, b"garbled"),
        lambda: operator.put(place, b"garbled"),
        lambda: member(operator, cluster, worker(1, port=1)),
        lambda: operator.revoke((operator.get(live) or pytest.fail("no live record")).lease),
    ):
        damage()
        until(mended)
    seen.wait_for(are({1: "active"}), WAIT_S)
    assert registration.lease_state == "held"


def test_two_workers_with_one_identity_are_told_apart(
    etcd: EtcdServer, seen: EtcdMembership, enter: Enter
) -> None:
    """A copied disk: the first one keeps its place, the second learns who has it and waits for its turn."""
    first = enter(etcd.url, worker(1, port=7001), lease_ttl_s=2, directory="host-a")
    assert first.wait_held(WAIT_S)
    second = enter(etcd.url, worker(1, port=7002), lease_ttl_s=2, directory="host-b")
    with pytest.raises(MembershipError, match=r"already served by 127\.0\.0\.1:7001"):
        second.wait_held(WAIT_S)
    assert "7001" in str(second.conflict)
    assert (first.lease_state, second.lease_state) == ("held", "never")
    assert first.conflict is None
    assert seen.wait_for(are({1: "active"}), WAIT_S).workers[0].port == 7001

    first.close()
    seen.wait_for(lambda view: view.workers[0].port == 7002 and states(view) == {1: "active"}, WAIT_S)
    until(lambda: second.conflict is None)
    assert second.wait_held(WAIT_S)


def test_a_killed_worker_restarts_on_its_directory_without_waiting(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, seen: EtcdMembership, tmp_path: Path, enter: Enter
) -> None:
    """The lease of its former process has an hour to go; the directory lock shows that process dead."""
    with DirectoryLock(tmp_path) as lock:
        info = replace(worker(1, port=7001), id=load_or_create_identity(tmp_path))
        former = enter(etcd.url, info, directory=lock.fingerprint)
        assert former.wait_held(WAIT_S)
        abandon(former)
    with DirectoryLock(tmp_path) as lock:
        moved = replace(info, id=load_or_create_identity(tmp_path), port=7002)
        assert enter(etcd.url, moved, directory=lock.fingerprint).wait_held(WAIT_S)
        assert seen.wait_for(lambda view: [w.port for w in view.workers] == [7002], WAIT_S)


def test_a_killed_worker_whose_volume_moved_gets_its_place_when_the_lease_ran_out(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, seen: EtcdMembership, enter: Enter
) -> None:
    with worker_process(etcd.url, cluster, 1, ttl_s=2) as process:
        process.send_signal(signal.SIGKILL)
        restarted = enter(etcd.url, worker(1, port=7002), lease_ttl_s=2, directory="elsewhere")
        assert restarted.wait_held(WAIT_S)
    assert restarted.conflict is None
    assert seen.wait_for(are({1: "active"}), WAIT_S).workers[0].port == 7002


def test_who_was_replaced_does_not_take_the_place_back(
    etcd: EtcdServer, seen: EtcdMembership, enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    """Two processes that both believe to hold the directory (no locks on that file system): the
    younger one serves, and they do not take turns for ever."""
    older = enter(etcd.url, worker(1, port=7001), lease_ttl_s=2, directory="shared")
    assert older.wait_held(WAIT_S)
    younger = enter(etcd.url, worker(1, port=7002), lease_ttl_s=2, directory="shared")
    assert younger.wait_held(WAIT_S)
    until(lambda: older.conflict)
    assert (older.lease_state, younger.lease_state) == ("lost", "held")
    assert younger.stats().reregistrations == 0
    assert seen.wait_for(are({1: "active"}), WAIT_S).workers[0].port == 7002


def test_a_live_record_that_no_lease_keeps_belongs_to_nobody(
    etcd: EtcdServer, operator: EtcdClient, cluster: str, enter: Enter
) -> None:
    """As a restored backup may hold it: it would never run out."""
    lease = operator.grant(60)
    member(operator, cluster, worker(1, port=1), lease=lease, instance="former")
    item = operator.get(live_prefix(cluster) + worker(1).id)
    assert item is not None
    operator.put(item.key, item.value)
    assert enter(etcd.url, worker(1, port=2)).wait_held(WAIT_S)


def test_closing_while_etcd_is_down_or_silent_ends(own_etcd: EtcdServer, enter: Enter) -> None:
    down = enter(own_etcd.url, worker(1), timeout_s=0.2)
    silent = enter(own_etcd.url, worker(2), timeout_s=0.2)
    assert down.wait_held(WAIT_S)
    assert silent.wait_held(WAIT_S)
    own_etcd.pause()
    silent.close()
    own_etcd.kill()
    down.leave()
    assert not any(thread.name == "kara-registration" for thread in threading.enumerate())


def test_a_callback_may_close_what_called_it(etcd: EtcdServer, seen: EtcdMembership, enter: Enter) -> None:
    made: list[Registration] = []
    began = threading.Event()

    def on_change(state: LeaseState) -> None:
        assert began.wait(WAIT_S)
        made[0].close()

    made.append(enter(etcd.url, worker(1), on_change=on_change))
    began.set()
    seen.wait_for(are({1: "passive"}), WAIT_S)


def test_a_lease_time_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="lease_ttl_s"):
        Registration(EtcdClient("localhost"), "c", worker(1), lease_ttl_s=0)


def abandon(registration: Registration) -> None:
    """What SIGKILL leaves: no more beats, and a lease that runs on."""
    registration._stop()
    registration._lease = None


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestJanitor:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def janitor(self, operator: EtcdClient, cluster: str, clock: Clock) -> Janitor:
        return Janitor(operator, cluster, grace_s=600, every_s=30, clock=clock)

    def place(self, operator: EtcdClient, cluster: str, number: int) -> tuple[int, float] | None:
        """(revision, passive_since) of a member."""
        item = operator.get(member_prefix(cluster) + worker(number).id)
        return item and (item.mod_revision, decode_member(worker(number).id, item.value).passive_since)

    def test_marks_once_whoever_looks(
        self, operator: EtcdClient, cluster: str, janitor: Janitor, clock: Clock
    ) -> None:
        member(operator, cluster, worker(1), lease=operator.grant(60))
        member(operator, cluster, worker(2))
        janitor.sweep()
        marked = self.place(operator, cluster, 2)
        assert marked is not None
        assert marked[1] > 1e9
        assert self.place(operator, cluster, 1)[1] == 0  # type: ignore[index]

        for other in (janitor, Janitor(operator, cluster, grace_s=600, every_s=30, clock=clock)):
            other.sweep()
        assert self.place(operator, cluster, 2) == marked

    def test_removes_after_the_grace_and_not_before(
        self, operator: EtcdClient, cluster: str, janitor: Janitor, clock: Clock
    ) -> None:
        member(operator, cluster, worker(2))
        janitor.sweep()
        janitor.sweep()
        clock.now += 599
        janitor.sweep()
        assert self.place(operator, cluster, 2)
        clock.now += 2
        janitor.sweep()
        assert self.place(operator, cluster, 2) is None

    def test_one_who_came_back_in_between_gets_the_whole_grace_again(
        self, operator: EtcdClient, cluster: str, janitor: Janitor, clock: Clock
    ) -> None:
        member(operator, cluster, worker(2))
        janitor.sweep()
        janitor.sweep()
        clock.now += 599
        lease = operator.grant(60)
        member(operator, cluster, worker(2), lease=lease)
        operator.revoke(lease)
        for _ in range(2):
            clock.now += 2
            janitor.sweep()
        clock.now += 590
        janitor.sweep()
        assert self.place(operator, cluster, 2)

    def test_a_wrong_wall_clock_removes_nobody(
        self,
        operator: EtcdClient,
        cluster: str,
        janitor: Janitor,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Marked by a worker whose clock is an hour slow; ours jumps an hour ahead."""
        member(operator, cluster, worker(2))
        janitor.sweep()
        monkeypatch.setattr("time.time", lambda: 1e12)
        for _ in range(3):
            clock.now += 1
            janitor.sweep()
        assert self.place(operator, cluster, 2)

    def test_one_who_returns_while_being_judged_stays(
        self, operator: EtcdClient, cluster: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The read is older than the decision: the write must find nothing changed, or not happen."""
        janitor = Janitor(operator, cluster, grace_s=600, every_s=30, clock=clock)
        member(operator, cluster, worker(2))
        janitor.sweep()
        janitor.sweep()
        clock.now += 700
        refresh = janitor._roster.refresh

        def returns_then() -> bool:
            read = refresh()
            member(operator, cluster, worker(2), lease=operator.grant(60))
            return read

        monkeypatch.setattr(janitor._roster, "refresh", returns_then)
        janitor.sweep()
        assert self.place(operator, cluster, 2)

    def test_what_is_not_ours_is_left_alone(
        self,
        operator: EtcdClient,
        cluster: str,
        janitor: Janitor,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.ERROR):
            keys = [live_prefix(cluster) + "worker-alluxio", member_prefix(cluster) + "x"]
            for key in keys:
                operator.put(key, b'{"Identity":{"version":1,"identifier":"00"},"WorkerNetAddress":{}}')
            for _ in range(4):
                clock.now += 1000
                janitor.sweep()
        assert [operator.get(key) is not None for key in keys] == [True, True]

    def test_is_not_asked_more_often_than_due(
        self, operator: EtcdClient, cluster: str, janitor: Janitor, clock: Clock
    ) -> None:
        janitor.sweep_if_due()
        member(operator, cluster, worker(2))
        clock.now += 10  # between half of 30 and 30
        janitor.sweep_if_due()
        assert self.place(operator, cluster, 2)[1] == 0  # type: ignore[index]
        clock.now += 21
        janitor.sweep_if_due()
        assert self.place(operator, cluster, 2)[1] > 0  # type: ignore[index]
