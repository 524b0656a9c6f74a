from __future__ import annotations

import gc
import logging
import os
import random
import select
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import etcd_servers
import pytest
from etcd_servers import Link, client, member, states, until, worker

from kara_cache.errors import ConfigError
from kara_cache.membership.base import MembershipView, MemberState
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.etcd_json import KeyEvent
from kara_cache.membership.etcd_membership import EtcdMembership
from kara_cache.membership.records import LiveRecord, encode_live, live_prefix, member_prefix
from kara_cache.membership.roster import Roster
from kara_worker.testing.etcd_cluster import EtcdCluster
from kara_worker.testing.etcd_server import EtcdServer, enable_auth

pytestmark = [
    pytest.mark.etcd,
    # Python 3.12 warns of what these tests are about.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

WAIT_S = 20.0
Follow = Callable[..., EtcdMembership]


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
def link(etcd: EtcdServer) -> Iterator[Link]:
    with Link(etcd.port) as made:
        yield made


@pytest.fixture
def writer(etcd: EtcdServer) -> Iterator[EtcdClient]:
    with client(etcd.url) as made:
        yield made


@pytest.fixture
def cluster() -> str:
    return f"c-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def follow(cluster: str, tmp_path: Path) -> Iterator[Follow]:
    """A membership of these endpoints, closed at the end."""
    with ExitStack() as stack:

        def make(
            *urls: str, idle_timeout_s: float = 30.0, timeout_s: float = 1.0, **login: str
        ) -> EtcdMembership:
            etcd_client = stack.enter_context(client(*urls, timeout_s=timeout_s, **login))
            made = EtcdMembership(etcd_client, cluster, state_dir=tmp_path, idle_timeout_s=idle_timeout_s)
            stack.callback(made.close)
            return made

        yield make


def are(expected: dict[int, str]) -> Callable[[MembershipView], bool]:
    return lambda view: states(view) == expected


def test_workers_come_drain_are_missed_and_go(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    membership = follow(etcd.url)
    assert membership.view().workers == ()
    assert membership.view().source == "etcd"

    two, one = worker(2, port=7002), worker(1, port=7001)
    leases = [writer.grant(600), writer.grant(600)]
    member(writer, cluster, two, lease=leases[1])
    member(writer, cluster, one, lease=leases[0])
    view = membership.wait_for(are({1: "active", 2: "active"}), WAIT_S)
    assert view.workers == (one, two)

    member(writer, cluster, replace(two, state=MemberState.DRAINING), lease=leases[1])
    membership.wait_for(are({1: "active", 2: "draining"}), WAIT_S)

    writer.revoke(leases[0])
    view = membership.wait_for(are({1: "passive", 2: "draining"}), WAIT_S)
    assert view.workers[0] == replace(one, state=MemberState.PASSIVE)

    writer.delete(member_prefix(cluster) + one.id)
    later = membership.wait_for(are({2: "draining"}), WAIT_S)
    assert later.revision > view.revision


def test_a_view_is_the_same_object_until_something_changes(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    membership = follow(etcd.url)
    before = membership.view()
    lease = writer.grant(600)
    writer.put("/elsewhere", b"x")
    member(writer, cluster, worker(1), lease=lease)
    first = membership.wait_for(are({1: "active"}), WAIT_S)
    assert first is not before
    member(writer, cluster, worker(1), lease=lease)  # written again, says the same
    member(writer, cluster, worker(2))
    second = membership.wait_for(are({1: "active", 2: "passive"}), WAIT_S)
    assert second.revision > first.revision
    assert membership.view() is second


GARBAGE = [b"", b"{}", b"not json", b'{"Identity":{"version":1,"identifier":"00"}}', b"\xff\xfe"]


def test_values_that_are_not_ours_are_skipped_with_one_warning_each(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    strange = [
        prefix + f"x{n}" for prefix in (live_prefix(cluster), member_prefix(cluster)) for n in range(5)
    ]
    for key, value in zip(strange, GARBAGE * 2, strict=True):
        writer.put(key, value)
    membership = follow(etcd.url, idle_timeout_s=0.1)
    with caplog.at_level(logging.WARNING):
        assert membership.view().workers == ()
        for key in strange:
            writer.put(key, b"still not")
        member(writer, cluster, worker(1), lease=writer.grant(600))
        membership.wait_for(are({1: "active"}), WAIT_S)
        watches = membership.stats().watches
        until(lambda: membership.stats().watches > watches + 1)  # read again and again
    assert caplog.text.count("skipped") == len(strange)

    info = worker(2)
    writer.put(live_prefix(cluster) + info.id, b"garbled", lease=writer.grant(600))
    member(writer, cluster, info)
    membership.wait_for(are({1: "active", 2: "passive"}), WAIT_S)


def test_a_quiet_cluster_is_asked_about_and_not_read_again(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    member(writer, cluster, worker(1), lease=writer.grant(600))
    membership = follow(etcd.url, idle_timeout_s=0.05)
    view = membership.view()
    until(lambda: membership.stats().watches > 4)

    stats = membership.stats()
    assert (stats.readings, stats.failures) == (1, 0)
    assert membership.view() is view


def test_an_event_of_one_prefix_hides_none_of_the_other(writer: EtcdClient, cluster: str) -> None:
    """The two are watched by one stream but not in one order: the newer event may arrive alone."""
    roster = Roster(writer, cluster)
    member(writer, cluster, worker(1, port=1))
    roster.read()
    member(writer, cluster, worker(1, port=2))
    writer.put(live_prefix(cluster) + worker(2).id, encode_live(LiveRecord(worker(2))))
    newest = writer.get(live_prefix(cluster) + worker(2).id)
    assert newest is not None
    roster.apply([KeyEvent(newest.key, newest.mod_revision, newest)])

    assert roster.refresh()
    assert [entry.record.info.port for entry in roster.members.values()] == [2]
    assert list(roster.live) == [worker(2).id]
    assert not roster.refresh()


def test_what_changed_unseen_while_cut_off_is_caught_up_after_a_compaction(
    writer: EtcdClient, link: Link, cluster: str, follow: Follow
) -> None:
    leases = {number: writer.grant(600) for number in (1, 2)}
    for number, lease in leases.items():
        member(writer, cluster, worker(number), lease=lease)
    membership = follow(link.url)
    before = membership.view()
    assert states(before) == {1: "active", 2: "active"}

    link.cut()
    until(lambda: not membership.stats().connected)
    writer.revoke(leases[1])
    member(writer, cluster, worker(3), lease=writer.grant(600))
    writer.delete(live_prefix(cluster) + worker(2).id)
    writer.delete(member_prefix(cluster) + worker(2).id)
    now = writer.txn().header.revision
    writer.call("/v3/kv/compaction", {"revision": str(now)})
    assert membership.view() is before

    link.heal()
    membership.wait_for(are({1: "passive", 3: "active"}), WAIT_S)


def test_a_frozen_connection_is_doubted_and_replaced(
    writer: EtcdClient, link: Link, cluster: str, follow: Follow
) -> None:
    membership = follow(link.url, idle_timeout_s=0.3, timeout_s=0.3)
    membership.view()
    until(lambda: membership.stats().connected)
    link.freeze()
    member(writer, cluster, worker(1), lease=writer.grant(600))
    until(lambda: not membership.stats().connected)
    link.heal()
    membership.wait_for(are({1: "active"}), WAIT_S)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_written_and_cut_the_view_ends_as_etcd_is(
    etcd: EtcdServer, writer: EtcdClient, link: Link, cluster: str, follow: Follow, seed: int
) -> None:
    chance = random.Random(seed)
    membership = follow(link.url, idle_timeout_s=chance.choice([0.05, 30.0]))
    leases: dict[int, int] = {}
    expected: dict[int, str] = {}
    revisions = [membership.view().revision]
    for _ in range(150):
        number, act = chance.randrange(6), chance.random()
        if act < 0.4:
            leases[number] = leases.get(number) or writer.grant(600)
            member(writer, cluster, worker(number, port=chance.randint(1, 9)), lease=leases[number])
            expected[number] = "active"
        elif act < 0.7 and number in leases:
            writer.revoke(leases.pop(number))
            expected[number] = "passive"
        elif act < 0.8 and number not in leases:
            writer.delete(member_prefix(cluster) + worker(number).id)
            expected.pop(number, None)
        elif act < 0.9:
            link.cut()
        else:
            link.heal()
        revisions.append(membership.view().revision)
    link.heal()
    last = membership.wait_for(are(expected), WAIT_S)

    assert revisions == sorted(revisions)
    assert last.workers == follow(etcd.url).view().workers


def test_while_etcd_is_down_the_view_stays_and_recovers(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    with client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        membership = follow(own_etcd.url)
        before = membership.view()
        own_etcd.kill()
        until(lambda: membership.stats().failures > 1)
        assert membership.view() is before

        own_etcd.start()
        member(writer, cluster, worker(2), lease=writer.grant(600))
        membership.wait_for(are({1: "active", 2: "active"}), WAIT_S)


def test_while_etcd_is_paused_the_view_stays_and_recovers(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    with client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        membership = follow(own_etcd.url, idle_timeout_s=0.2, timeout_s=0.2)
        before = membership.view()
        own_etcd.pause()
        until(lambda: membership.stats().failures > 0)
        assert membership.view() is before

        own_etcd.resume()
        member(writer, cluster, worker(2), lease=writer.grant(600))
        membership.wait_for(are({1: "active", 2: "active"}), WAIT_S)


def test_an_etcd_that_lost_its_data_is_followed_and_revisions_still_grow(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    """As after a restore from a backup: revisions begin again below what clients have seen."""
    with client(own_etcd.url) as writer:
        for number in range(5):
            member(writer, cluster, worker(number), lease=writer.grant(600))
        membership = follow(own_etcd.url)
        before = membership.view()
        own_etcd.forget()
        own_etcd.start()
        emptied = membership.wait_for(are({}), WAIT_S)
        assert emptied.revision > before.revision

        member(writer, cluster, worker(9), lease=writer.grant(600))
        assert membership.wait_for(are({9: "active"}), WAIT_S).revision > emptied.revision


def test_an_etcd_that_lost_its_data_and_has_as_much_again_is_read_anew(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    """Same counts of keys, a higher revision, nothing written since ours: only reading shows it."""
    with Link(own_etcd.port) as link, client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        member(writer, cluster, worker(2))
        membership = follow(link.url)
        before = membership.wait_for(are({1: "active", 2: "passive"}), WAIT_S)
        link.cut()
        until(lambda: not membership.stats().connected)
        own_etcd.forget()
        own_etcd.start()
        member(writer, cluster, worker(3), lease=writer.grant(600))
        member(writer, cluster, worker(4))
        until(lambda: writer.put("/x", b"") or writer.txn().header.revision > before.revision + 5)
        link.heal()
        membership.wait_for(are({3: "active", 4: "passive"}), WAIT_S)


def test_a_start_while_etcd_is_down_begins_with_the_last_view(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    with client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        earlier = follow(own_etcd.url)
        known = earlier.wait_for(are({1: "active"}), WAIT_S)
        earlier.close()
        own_etcd.kill()

        membership = follow(own_etcd.url)
        view = membership.view()
        assert (view.workers, view.source) == (known.workers, "disk")
        assert view.revision == known.revision

        own_etcd.start()
        membership.wait_for(lambda view: view.source == "etcd", WAIT_S)
        assert membership.view().workers == known.workers


def test_a_start_while_etcd_is_silent_begins_with_the_last_view(
    own_etcd: EtcdServer, cluster: str, tmp_path: Path, follow: Follow
) -> None:
    """Silent, not refusing: without a bound the first read of a job would hang here."""
    with client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        earlier = follow(own_etcd.url)
        earlier.wait_for(are({1: "active"}), WAIT_S)
        earlier.close()
        own_etcd.pause()
        patient = EtcdClient([own_etcd.url], connect_timeout_s=0.2, timeout_s=600)
        membership = EtcdMembership(patient, cluster, state_dir=tmp_path)
        assert membership.view().source == "disk"
        own_etcd.resume()
        membership.wait_for(lambda view: view.source == "etcd", WAIT_S)
        membership.close()
        patient.close()


def test_a_first_start_while_etcd_is_down_knows_nobody_and_learns(
    own_etcd: EtcdServer, cluster: str, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    own_etcd.kill()
    membership = follow(own_etcd.url)
    assert membership.view() == MembershipView((), 0, "disk")
    until(lambda: membership.stats().failures > 2)
    assert caplog.text.count("cannot be followed") == 1

    own_etcd.start()
    with client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        membership.wait_for(are({1: "active"}), WAIT_S)


def test_the_loss_of_the_followed_member_is_no_loss(cluster: str, follow: Follow) -> None:
    binary = etcd_servers.binary("installed")
    with EtcdCluster(binary=binary) as servers:
        membership = follow(*servers.urls, timeout_s=5.0)
        membership.view()
        until(lambda: membership.stats().connected)
        followed = membership.endpoint
        servers.member(followed).kill()
        with client(*(url for url in servers.urls if url != followed)) as writer:
            until(lambda: _succeeds(lambda: member(writer, cluster, worker(1), lease=writer.grant(600))))
            membership.wait_for(are({1: "active"}), WAIT_S)
        assert membership.endpoint != followed


def _succeeds(action: Callable[[], None]) -> bool:
    """An election may be under way."""
    try:
        action()
    except Exception:
        return False
    return True


def test_a_user_that_may_read_both_prefixes_follows(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    prefixes = [live_prefix(cluster), member_prefix(cluster)]
    with client(own_etcd.url) as writer:
        enable_auth(writer, root_password="r00t", user="kara", password="pw", prefixes=prefixes)
    membership = follow(own_etcd.url, username="kara", password="pw")
    stranger = follow(own_etcd.url, username="kara", password="wrong")
    with client(own_etcd.url, username="root", password="r00t") as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
        membership.wait_for(are({1: "active"}), WAIT_S)
        own_etcd.restart()  # forgets all tokens
        member(writer, cluster, worker(2), lease=writer.grant(600))
    membership.wait_for(are({1: "active", 2: "active"}), WAIT_S)
    assert not stranger.stats().connected


def test_threads_that_come_first_together_get_one_view(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    member(writer, cluster, worker(1), lease=writer.grant(600))
    membership = follow(etcd.url)
    together, views = threading.Barrier(8), []

    def first() -> None:
        together.wait(10)
        views.append(membership.view())

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(views) == 8
    assert len({id(view) for view in views}) == 1
    assert states(views[0]) == {1: "active"}
    assert membership.stats().readings == 1


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kara-membership"]


def test_a_membership_that_is_dropped_ends_its_thread(etcd: EtcdServer, cluster: str) -> None:
    with client(etcd.url) as etcd_client:
        before = followers()
        membership = EtcdMembership(etcd_client, cluster, state_dir=None)
        membership.view()
        (thread,) = set(followers()) - set(before)
        del membership
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()


def test_close_ends_the_thread_and_keeps_the_view(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    member(writer, cluster, worker(1), lease=writer.grant(600))
    before = set(followers())
    membership = follow(etcd.url, idle_timeout_s=100)
    view = membership.view()
    until(lambda: membership.stats().connected)
    (thread,) = set(followers()) - before
    membership.close()
    assert not thread.is_alive()
    membership.close()
    assert membership.view() is view
    assert "1 workers" in repr(membership)


def test_closed_before_its_first_view_it_starts_nothing(
    etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    before = followers()
    membership = follow(etcd.url)
    membership.close()
    assert membership.view().workers == ()
    assert followers() == before


def test_wait_for_gives_up_in_words(etcd: EtcdServer, follow: Follow) -> None:
    with pytest.raises(TimeoutError, match="the last view is"):
        follow(etcd.url).wait_for(lambda view: False, 0.01)


def test_a_bad_cluster_name_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="cluster_name"):
        EtcdMembership(EtcdClient("localhost"), "a/b", state_dir=None)


def in_child(act: Callable[[], bool]) -> int:
    """The pid of a forked child that exits with 0 if `act()` is true there."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = 0 if act() else 2
    finally:
        os._exit(code)


def exit_code(pid: int, timeout_s: float = 30.0) -> int | str:
    descriptor = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if ended else "hung"


def test_forked_children_have_a_view_while_it_changes(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    """60 forks, the watch busy all the while: a lock held by another thread at fork would hang one."""
    member(writer, cluster, worker(0), lease=writer.grant(600))
    membership = follow(etcd.url, idle_timeout_s=0.02)  # re-reads, re-watches and publishes all the time
    membership.view()
    stop = threading.Event()

    def churn() -> None:
        lease = writer.grant(600)
        while not stop.is_set():
            for port in (1, 2):
                member(writer, cluster, worker(1, port=port), lease=lease)

    churner = threading.Thread(target=churn)
    churner.start()
    try:
        codes = [exit_code(in_child(lambda: 0 in states(membership.view()))) for _ in range(60)]
    finally:
        stop.set()
        churner.join(30)
    assert codes == [0] * 60


def test_a_lock_that_was_held_at_fork_does_not_hang_the_child(
    etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    membership = follow(etcd.url)
    view = membership.view()
    with membership._lock:
        child = in_child(lambda: membership.view() is view)
    assert exit_code(child) == 0


def test_a_forked_child_follows_on_its_own_and_leaves_the_parents_watch_alone(
    etcd: EtcdServer, writer: EtcdClient, cluster: str, follow: Follow
) -> None:
    membership = follow(etcd.url)
    membership.view()
    until(lambda: membership.stats().connected)

    def child() -> bool:
        membership.wait_for(are({1: "active"}), WAIT_S)
        membership.close()
        gc.collect()
        return states(membership.view()) == {1: "active"}

    children = [in_child(child) for _ in range(4)]
    member(writer, cluster, worker(1), lease=writer.grant(600))
    assert [exit_code(pid) for pid in children] == [0] * 4
    member(writer, cluster, worker(2), lease=writer.grant(600))
    membership.wait_for(are({1: "active", 2: "active"}), WAIT_S)
    assert membership.stats().failures == 0


def test_a_child_of_a_child_begins_with_what_was_known(
    own_etcd: EtcdServer, cluster: str, follow: Follow
) -> None:
    with client(own_etcd.url) as writer:
        member(writer, cluster, worker(1), lease=writer.grant(600))
    membership = follow(own_etcd.url)
    membership.wait_for(are({1: "active"}), WAIT_S)
    own_etcd.kill()

    def child() -> bool:
        return exit_code(in_child(lambda: states(membership.view()) == {1: "active"})) == 0

    assert exit_code(in_child(child)) == 0
