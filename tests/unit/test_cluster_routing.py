"""Whom a client asks, in which order, and whom it leaves alone: no sockets."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from scripted_worker import FixedMembership

from kara_cache.cached_file import CachedFile
from kara_cache.cluster import Cluster
from kara_cache.config import TlsConfig
from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError, WorkerBusy, WorkerUnavailable
from kara_cache.failover import Detours
from kara_cache.membership.base import MemberState, WorkerInfo
from kara_cache.secret_ref import Secret
from kara_cache.suspects import Suspects
from kara_cache.token import verify
from kara_cache.transport.credentials import TOKEN_TTL_S, ClientTls, authorization
from kara_cache.transport.worker_link import Transport
from kara_cache.ufs.base import FileInfo

TRANSPORT = Transport(connect_timeout_s=1, stall_timeout_s=1, connections=1)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# -- suspects ------------------------------------------------------------------------------------------


def test_a_suspect_is_avoided_for_its_time_and_then_probed_by_one() -> None:
    clock = Clock()
    suspects = Suspects(5.0, clock=clock)
    assert not suspects.avoid("w")
    suspects.failed("w")
    assert suspects.avoid("w")
    assert "w" in suspects
    clock.now = 5.0
    assert [suspects.avoid("w") for _ in range(3)] == [False, True, True]
    suspects.answered("w")
    assert not suspects.avoid("w")
    assert repr(suspects) == "<Suspects none>"


def test_each_failed_probe_doubles_the_time_up_to_eight_times() -> None:
    clock = Clock()
    suspects = Suspects(5.0, clock=clock)
    times = []
    for _ in range(6):
        suspects.failed("w")
        began = clock.now
        while suspects.avoid("w"):
            clock.now += 1.0
        times.append(clock.now - began)
    assert times == [5.0, 10.0, 20.0, 40.0, 40.0, 40.0]


def test_threads_that_fail_together_count_once() -> None:
    clock = Clock()
    suspects = Suspects(5.0, clock=clock)
    for _ in range(50):
        suspects.failed("w")
    clock.now = 5.0
    assert not suspects.avoid("w")


def test_a_probe_that_never_comes_back_does_not_block_the_next() -> None:
    clock = Clock()
    suspects = Suspects(5.0, clock=clock)
    suspects.failed("w")
    clock.now = 5.0
    assert not suspects.avoid("w")
    clock.now = 10.0
    assert not suspects.avoid("w")


# -- order ---------------------------------------------------------------------------------------------


def members(count: int, **states: MemberState) -> list[WorkerInfo]:
    return [
        WorkerInfo(f"w{n}", "127.0.0.1", 1 + n, state=states.get(f"w{n}", MemberState.ACTIVE))
        for n in range(count)
    ]


def asked(cluster: Cluster, path: str = "/m/f", *, before: tuple[str, ...] = ()) -> list[tuple[str, bool]]:
    table = cluster.table()
    return [
        (worker.id, keep)
        for worker, keep in cluster.candidates(table, cluster.owners(table, path), set(before))
    ]


def cluster_of(membership: FixedMembership, clock: Clock | None = None) -> Cluster:
    return Cluster(membership, TRANSPORT, Suspects(5.0, clock=clock or Clock()))


def test_owners_first_two_of_which_keep_then_two_others() -> None:
    cluster = cluster_of(FixedMembership(*members(8)))
    order = asked(cluster)
    owners = cluster.owners(cluster.table(), "/m/f")
    assert [worker for worker, _ in order[:3]] == list(owners)
    assert [keep for _, keep in order] == [True, True, False, False, False]
    assert len({worker for worker, _ in order}) == 5


def test_the_keys_of_a_dead_worker_fall_on_all_others() -> None:
    cluster = cluster_of(FixedMembership(*members(8)))
    spares = {worker for n in range(200) for worker, _ in asked(cluster, f"/m/{n}")[3:]}
    assert len(spares) == 8


def test_suspects_and_members_without_work_are_left_out_until_the_last_resort() -> None:
    membership = FixedMembership(*members(4))
    cluster = cluster_of(membership)
    owners = cluster.owners(cluster.table(), "/m/f")
    membership.replace(*members(4, **{owners[0]: MemberState.DRAINING}))
    cluster.suspects.failed(owners[1])
    order = asked(cluster)
    assert owners[0] not in [worker for worker, _ in order]
    assert owners[1] not in [worker for worker, _ in order]
    assert order[0] == (owners[2], True)
    last = cluster.last_resort(cluster.table(), owners, {worker for worker, _ in order})
    assert [(worker.id, keep) for worker, keep in last] == [(owners[0], True), (owners[1], True)]


def test_who_was_asked_before_is_left_out_and_counts_among_the_keepers() -> None:
    cluster = cluster_of(FixedMembership(*members(5)))
    owners = cluster.owners(cluster.table(), "/m/f")
    assert asked(cluster, before=(owners[0],))[:2] == [(owners[1], True), (owners[2], False)]
    first = cluster.first(cluster.table(), owners)
    assert first is not None
    assert first.id == owners[0]


def test_a_change_of_state_keeps_placement_and_connections() -> None:
    membership = FixedMembership(*members(3))
    cluster = cluster_of(membership)
    before = cluster.table()
    assert cluster.table() is before
    membership.replace(*members(3, w1=MemberState.PASSIVE))
    after = cluster.table()
    assert after is not before
    assert after.placement is before.placement
    assert after.clients["w1"] is before.clients["w1"]
    assert after.live == {"w0", "w2"}


def test_another_address_is_another_client_another_weight_another_placement() -> None:
    membership = FixedMembership(*members(3))
    cluster = cluster_of(membership)
    before = cluster.table()
    w0, w1, w2 = members(3)
    membership.replace(replace(w0, port=99), replace(w1, capacity_bytes=5), w2)
    after = cluster.table()
    assert after.clients["w0"] is not before.clients["w0"]
    assert after.clients["w1"] is before.clients["w1"]
    assert after.placement is not before.placement


def test_while_a_table_is_built_others_go_on_with_the_old_one() -> None:
    membership = FixedMembership(*members(2))
    cluster = cluster_of(membership)
    old = cluster.table()
    membership.replace(*members(3))
    with cluster._building:
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(cluster.table()))
        thread.start()
        thread.join(10)
        assert got == [old]
    assert len(cluster.table().clients) == 3


def test_routes_are_remembered_with_the_file_until_the_placement_changes() -> None:
    membership = FixedMembership(*members(5))
    cluster, file = cluster_of(membership), CachedFile(FileInfo("/m/f", 1 << 40, "v"))
    table = cluster.table()
    for stripe in (0, 1, 77):
        assert cluster.owners_of(table, file, stripe) == cluster.owners(table, "/m/f", stripe)
        assert cluster.owners_of(table, file, stripe) is cluster.owners_of(table, file, stripe)
    membership.replace(*members(4))
    again = cluster.table()
    assert cluster.owners_of(again, file, 0) == cluster.owners(again, "/m/f", 0)


# -- what a call ends with -----------------------------------------------------------------------------


def test_the_error_of_a_call_is_the_one_that_says_most() -> None:
    detours = Detours("/m/f")
    assert str(detours.error()) == "/m/f: nothing could answer: no worker is known"
    detours.note("a", WorkerBusy("full"))
    detours.note("b", WorkerUnavailable("gone", reason="refused"))
    error = detours.error()
    assert isinstance(error, WorkerUnavailable)
    assert error.reason == "refused"
    assert str(error) == "/m/f: nothing could answer: a: full; b: gone"
    detours.note("c", UnderStoreError("503"))
    assert isinstance(detours.error(), UnderStoreError)
    assert not detours.exhausted
    detours.note("d", StaleVersion("etag"))
    assert isinstance(detours.error(), StaleVersion)
    detours.note("e", StaleVersion("etag"))
    assert detours.exhausted


# -- credentials ---------------------------------------------------------------------------------------


def test_a_token_is_sent_as_it_is_and_nothing_without_one(tmp_path: object) -> None:
    shown = authorization(Secret("kara1.payload.signature"), None)
    assert shown is not None
    assert shown() == "Bearer kara1.payload.signature"
    assert authorization(None, None) is None


def test_a_secret_mints_tokens_that_workers_accept_and_that_are_kept_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import time

    monkeypatch.setenv("KARA_TEST_SECRET", "sixteen bytes at least")
    shown = authorization(None, Secret("env:KARA_TEST_SECRET"))
    assert shown is not None
    value = shown()
    claims = verify(value.removeprefix("Bearer "), [b"sixteen bytes at least"], time.time())
    assert claims.allows("write", "/m/f")
    assert claims.expires <= time.time() + TOKEN_TTL_S + 1
    monkeypatch.delenv("KARA_TEST_SECRET")
    assert shown() == value


def test_a_secret_that_cannot_be_read_is_a_configuration_error() -> None:
    shown = authorization(None, Secret("env:KARA_NO_SUCH_VARIABLE"))
    assert shown is not None
    with pytest.raises(ConfigError, match="KARA_NO_SUCH_VARIABLE"):
        shown()


def test_tls_files_are_named_when_they_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match=r"/no/such/ca\.pem"):
        ClientTls(TlsConfig(ca="/no/such/ca.pem"))()


def test_a_forked_child_makes_a_context_of_its_own() -> None:
    tls = ClientTls(TlsConfig(ca="system", verify_hostname=False))
    context = tls()
    assert tls() is context
    assert not context.check_hostname
    tls.after_fork()
    assert tls() is not context
