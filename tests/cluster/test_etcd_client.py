from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import etcd_servers
import pytest
import trustme
from etcd_servers import client

from kara_cache.errors import MembershipError
from kara_cache.membership.etcd import Compacted, EtcdClient, TlsFiles, Watch
from kara_cache.membership.etcd_json import Delete, KeyEvent, Put, Range, Unchanged
from kara_worker.testing.etcd_cluster import EtcdCluster
from kara_worker.testing.etcd_server import EtcdServer, ServerTls, enable_auth

pytestmark = [
    pytest.mark.etcd,
    # Python 3.12 warns of what these tests are about.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module", params=etcd_servers.RELEASES)
def etcd(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    with etcd_servers.server(request.param) as server:
        yield server


@pytest.fixture(params=etcd_servers.RELEASES)
def own_etcd(request: pytest.FixtureRequest) -> Iterator[EtcdServer]:
    """One that a test may stop, pause or lock."""
    with etcd_servers.server(request.param) as server:
        yield server


@pytest.fixture
def etcd_client(etcd: EtcdServer) -> Iterator[EtcdClient]:
    with client(etcd.url) as made:
        yield made


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"/{request.node.name}/"


def revision(etcd_client: EtcdClient) -> int:
    return etcd_client.txn(then=[Range("/")]).header.revision


class Collector:
    """Iterates a watch in a thread; `begun` is set when etcd watches."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.events: list[KeyEvent] = []
        self.begun = threading.Event()
        self.error: Exception | None = None
        self._arrived = threading.Condition()
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        try:
            for events in self.watch:
                self.begun.set()
                with self._arrived:
                    self.events += events
                    self._arrived.notify_all()
        except Exception as exc:
            self.error = exc
        self.begun.set()

    def wait(self, count: int) -> list[KeyEvent]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.events) >= count, 10), self.error
        return self.events

    def ended(self) -> Exception | None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.error

    def __enter__(self) -> Collector:
        assert self.begun.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.cancel()
        self.ended()


def test_keys_come_and_go(etcd_client: EtcdClient, prefix: str) -> None:
    assert etcd_client.get(prefix + "a") is None
    etcd_client.put(prefix + "a", b"\x00\xff")
    etcd_client.put(prefix + "b/中", b"")

    item = etcd_client.get(prefix + "a")
    assert item is not None
    assert item.value == b"\x00\xff"
    assert [item.key for item in etcd_client.list(prefix)] == [prefix + "a", prefix + "b/中"]

    etcd_client.delete(prefix + "a")
    etcd_client.delete(prefix + "a")
    assert [item.key for item in etcd_client.list(prefix)] == [prefix + "b/中"]


def test_a_transaction_is_all_or_nothing(etcd_client: EtcdClient, prefix: str) -> None:
    one, two = prefix + "1", prefix + "2"
    absent = Unchanged(one, 0)
    assert etcd_client.txn([absent], then=[Put(one, b"x"), Put(two, b"x")]).succeeded
    assert not etcd_client.txn([absent], then=[Delete(one), Delete(two)]).succeeded
    read = etcd_client.txn(then=[Range(one), Range(prefix, prefix=True), Range(prefix + "3")])

    (first,), both, none = (found.items for found in read.found)
    assert [item.mod_revision for item in both] == [first.mod_revision] * 2
    assert none == ()
    assert etcd_client.txn([Unchanged(one, first.mod_revision)], then=[Delete(one)]).succeeded
    assert [item.key for item in etcd_client.list(prefix)] == [two]


def test_only_what_was_written_since(etcd_client: EtcdClient, prefix: str) -> None:
    etcd_client.put(prefix + "old", b"x")
    before = revision(etcd_client)
    etcd_client.put(prefix + "new", b"x")
    question = Range(prefix, prefix=True, min_mod_revision=before + 1, keys_only=True)
    (found,) = etcd_client.txn(then=[question]).found

    assert [(item.key, item.value) for item in found.items] == [(prefix + "new", b"")]
    assert found.count == 2


def test_a_lease_lives_while_it_is_renewed(etcd_client: EtcdClient, prefix: str) -> None:
    lease = etcd_client.grant(60)
    etcd_client.put(prefix + "a", b"x", lease=lease)
    item = etcd_client.get(prefix + "a")
    assert item is not None
    assert item.lease == lease
    assert etcd_client.keepalive(lease) == 60
    assert 0 < etcd_client.time_to_live(lease) <= 60

    etcd_client.revoke(lease)
    etcd_client.revoke(lease)
    assert etcd_client.get(prefix + "a") is None
    assert etcd_client.keepalive(lease) == 0
    assert etcd_client.time_to_live(lease) == -1


def test_a_watch_shows_both_prefixes_and_nothing_else(etcd_client: EtcdClient, prefix: str) -> None:
    left, right = prefix + "left/", prefix + "right/"
    etcd_client.put(left + "before", b"x")
    start = revision(etcd_client) + 1
    etcd_client.put(left + "between", b"x")  # after the reading, before the watch
    with Collector(etcd_client.watch([left, right], start, idle_timeout_s=30)) as seen:
        lease = etcd_client.grant(60)
        etcd_client.put(prefix + "other", b"x")
        etcd_client.put(right + "1", b"one", lease=lease)
        etcd_client.revoke(lease)
        seen.wait(3)

    # In order within a prefix. Between the two there is none while the watch catches up.
    lefts = [event for event in seen.events if event.key.startswith(left)]
    rights = [event for event in seen.events if event not in lefts]
    assert [(event.key, event.item and event.item.value) for event in lefts] == [(left + "between", b"x")]
    assert [(event.key, event.item and event.item.value) for event in rights] == [
        (right + "1", b"one"),
        (right + "1", None),
    ]
    assert lefts[0].mod_revision == start
    assert rights[0].mod_revision < rights[1].mod_revision


def test_a_cancelled_watch_ends_without_an_error(etcd_client: EtcdClient, prefix: str) -> None:
    seen = Collector(etcd_client.watch([prefix], 0, idle_timeout_s=100))
    assert seen.begun.wait(10)
    seen.watch.cancel()
    assert seen.ended() is None


def test_a_child_that_cancels_does_not_end_its_parents_watch(etcd_client: EtcdClient, prefix: str) -> None:
    with Collector(etcd_client.watch([prefix], 0, idle_timeout_s=100)) as seen:
        child = os.fork()
        if child == 0:
            seen.watch.cancel()
            os._exit(0)
        os.waitpid(child, 0)
        etcd_client.put(prefix + "a", b"x")
        seen.wait(1)
    assert seen.error is None


def test_a_quiet_watch_ends_without_an_error(etcd_client: EtcdClient, prefix: str) -> None:
    assert list(etcd_client.watch([prefix], 0, idle_timeout_s=0.2)) == [()]


def test_a_watch_from_a_compacted_revision_says_so(etcd_client: EtcdClient, prefix: str) -> None:
    start = revision(etcd_client) + 1
    for _ in range(3):
        etcd_client.put(prefix + "a", b"x")
    etcd_client.call("/v3/kv/compaction", {"revision": str(revision(etcd_client))})

    with pytest.raises(Compacted):
        list(etcd_client.watch([prefix], start, idle_timeout_s=10))


def test_a_watch_from_a_revision_that_etcd_has_not_reached_says_so(etcd_client: EtcdClient) -> None:
    """As after a restore: such a watch would keep silent about everything until then."""
    start = revision(etcd_client) + 2
    with pytest.raises(Compacted, match="asked from"):
        list(etcd_client.watch(["/x/"], start, idle_timeout_s=10))


def test_a_watch_of_a_server_that_stops_is_an_error(own_etcd: EtcdServer) -> None:
    with client(own_etcd.url) as etcd_client:
        seen = Collector(etcd_client.watch(["/x/"], 0, idle_timeout_s=100))
        assert seen.begun.wait(10)
        own_etcd.terminate()
        error = seen.ended()
    assert isinstance(error, MembershipError)
    assert own_etcd.url in str(error)


def test_the_same_client_works_after_a_restart(own_etcd: EtcdServer) -> None:
    with client(own_etcd.url) as etcd_client:
        etcd_client.put("/a", b"x")
        own_etcd.kill()
        with pytest.raises(MembershipError, match=own_etcd.url):
            etcd_client.get("/a")
        own_etcd.start()
        item = etcd_client.get("/a")
    assert item is not None
    assert item.value == b"x"


def test_a_paused_server_is_an_error_until_it_goes_on(own_etcd: EtcdServer) -> None:
    with client(own_etcd.url, timeout_s=0.3) as etcd_client:
        etcd_client.put("/a", b"x")
        own_etcd.pause()
        with pytest.raises(MembershipError, match=own_etcd.url):
            etcd_client.get("/a")
        own_etcd.resume()
        own_etcd.wait_ready()
    with client(own_etcd.url) as etcd_client:
        assert etcd_client.get("/a") is not None


def test_an_endpoint_that_never_answers_leaves_time_for_the_others(etcd: EtcdServer, prefix: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # the kernel accepts, nobody answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with client(url, etcd.url, timeout_s=2) as etcd_client:
            for _ in range(3):  # whichever comes first
                etcd_client.put(prefix + "a", b"x")
            assert etcd_client.endpoint == etcd.url
            assert sorted(etcd_client.endpoints) == sorted([url, etcd.url])


def test_what_answers_but_is_not_etcd_is_named(etcd: EtcdServer) -> None:
    with client(etcd.peer_url) as etcd_client, pytest.raises(MembershipError) as failure:
        etcd_client.get("/a")
    assert etcd.peer_url in str(failure.value)
    assert "is this etcd's client port" in str(failure.value)


def test_a_forked_child_and_its_parent_do_not_share_a_connection(
    etcd_client: EtcdClient, prefix: str
) -> None:
    etcd_client.put(prefix + "parent", b"1")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            etcd_client.put(prefix + "child", b"1")
            code = 0 if etcd_client.get(prefix + "parent") else 2
        finally:
            os._exit(code)
    etcd_client.put(prefix + "parent", b"2")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(etcd_client.list(prefix)) == 2


@pytest.mark.parametrize("release", etcd_servers.RELEASES)
def test_the_loss_of_the_connected_member_is_no_loss(release: str) -> None:
    with EtcdCluster(binary=etcd_servers.binary(release)) as cluster, client(*cluster.urls) as etcd_client:
        lease = etcd_client.grant(60)
        etcd_client.put("/a", b"x", lease=lease)
        connected = etcd_client.endpoint
        seen = Collector(etcd_client.watch(["/a"], 0, idle_timeout_s=100))
        assert seen.begun.wait(10)

        cluster.member(connected).kill()
        assert isinstance(seen.ended(), MembershipError)
        retried(lambda: etcd_client.put("/b", b"y"))
        assert etcd_client.endpoint != connected
        assert etcd_client.keepalive(lease) == 60
        item = etcd_client.get("/a")
        assert item is not None
        assert item.value == b"x"


def test_without_a_quorum_calls_fail_and_watches_end(tmp_path: Path) -> None:
    """Without the leader check a member that is cut off would show a quiet watch."""
    binary = etcd_servers.binary("installed")
    with EtcdCluster(binary=binary) as cluster, client(*cluster.urls, timeout_s=3) as etcd_client:
        etcd_client.put("/a", b"x")
        seen = Collector(etcd_client.watch(["/a"], 0, idle_timeout_s=100))
        assert seen.begun.wait(10)
        others = [member for member in cluster.members if member.url != etcd_client.endpoint]
        for member in others:
            member.kill()
        assert isinstance(seen.ended(), MembershipError)
        with pytest.raises(MembershipError):
            etcd_client.get("/a")
        for member in others:
            member.spawn()
        cluster.members[0].wait_ready()
        retried(lambda: etcd_client.put("/b", b"y"))


def retried(action: Callable[[], None], attempts: int = 10) -> None:
    """While etcd elects a leader calls may fail; the election has a bound, and so has this."""
    try:
        action()
    except MembershipError:
        if attempts == 1:
            raise
        retried(action, attempts - 1)


PASSWORD = "c4n4ry-p4ss"


@pytest.fixture
def locked_etcd(own_etcd: EtcdServer) -> EtcdServer:
    with client(own_etcd.url) as open_client:
        enable_auth(open_client, root_password="r00t", user="kara", password=PASSWORD, prefixes=["/k/"])
    return own_etcd


def test_a_user_may_do_what_its_role_allows(locked_etcd: EtcdServer) -> None:
    with client(locked_etcd.url, username="kara", password=PASSWORD) as etcd_client:
        etcd_client.put("/k/a", b"x", lease=etcd_client.grant(60))
        with Collector(etcd_client.watch(["/k/"], 1, idle_timeout_s=100)) as seen:
            etcd_client.delete("/k/a")
            assert [event.item is None for event in seen.wait(2)] == [False, True]
        with pytest.raises(MembershipError, match="permission denied"):
            etcd_client.put("/other", b"x")
        with pytest.raises(MembershipError):
            list(etcd_client.watch(["/other/"], 0, idle_timeout_s=10))


def test_a_token_that_etcd_forgot_is_renewed(locked_etcd: EtcdServer) -> None:
    with client(locked_etcd.url, username="kara", password=PASSWORD) as etcd_client:
        etcd_client.put("/k/a", b"x")
        locked_etcd.restart()  # simple tokens live in memory
        assert etcd_client.get("/k/a") is not None


def test_a_changed_password_is_asked_for(locked_etcd: EtcdServer) -> None:
    passwords = [PASSWORD]
    etcd_client = EtcdClient([locked_etcd.url], username="kara", password=lambda: passwords[-1])
    etcd_client.put("/k/a", b"x")
    with client(locked_etcd.url, username="root", password="r00t") as root:
        root.call("/v3/auth/user/changepw", {"name": "kara", "password": "n3w"})
    passwords.append("n3w")
    assert etcd_client.get("/k/a") is not None
    etcd_client.close()


@pytest.mark.parametrize(
    ("username", "password"), [("kara", "wr0ng-s3cret"), ("nobody", "wr0ng-s3cret"), ("", "")]
)
def test_a_refusal_names_the_endpoint_and_no_password(
    locked_etcd: EtcdServer, username: str, password: str
) -> None:
    with client(locked_etcd.url, username=username, password=password) as etcd_client:
        with pytest.raises(MembershipError) as failure:
            etcd_client.get("/k/a")
        with pytest.raises(MembershipError):
            list(etcd_client.watch(["/k/"], 0, idle_timeout_s=10))
    assert locked_etcd.url in str(failure.value)
    assert "wr0ng-s3cret" not in repr(failure.value) + repr(etcd_client)


class Authority:
    """A CA and files of what it signed."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.ca = str(directory / "ca.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *identities: str, common_name: str | None = None) -> tuple[str, str]:
        issued = self._ca.issue_cert(*identities, common_name=common_name)
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(cert, append=number > 0)
        issued.private_key_pem.write_to_path(key)
        return str(cert), str(key)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(params=etcd_servers.RELEASES)
def tls_etcd(request: pytest.FixtureRequest, authority: Authority) -> Iterator[EtcdServer]:
    """Wants a client certificate of `authority`."""
    tls = ServerTls(*authority.issue("server", "127.0.0.1"), client_ca=authority.ca)
    binary = etcd_servers.binary(request.param)
    with EtcdServer(binary=binary, tls=tls, arguments=etcd_servers.ALONE) as server:
        yield server


def test_mutual_tls(tls_etcd: EtcdServer, authority: Authority) -> None:
    tls = TlsFiles(authority.ca, *authority.issue("client", "worker.example"))
    etcd_client = EtcdClient([tls_etcd.url], tls=tls)
    etcd_client.put("/a", b"x")
    with Collector(etcd_client.watch(["/a"], 1, idle_timeout_s=100)) as seen:
        seen.wait(1)
    assert seen.error is None
    etcd_client.close()


def test_without_a_certificate_or_with_a_strange_ca_nothing_is_sent(
    tls_etcd: EtcdServer, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "strange").mkdir()
    strange = Authority(tmp_path / "strange")
    ours = authority.issue("client", "worker.example")
    theirs = strange.issue("client", "worker.example")
    wrong = [
        TlsFiles(authority.ca),
        TlsFiles(authority.ca, *theirs),
        TlsFiles(strange.ca, *ours),
        TlsFiles("", *ours),
    ]
    for tls in wrong:
        etcd_client = EtcdClient([tls_etcd.url], tls=tls)
        with pytest.raises(MembershipError, match=tls_etcd.url):
            etcd_client.get("/a")
        etcd_client.close()


def test_a_certificate_of_another_host_is_accepted_only_if_asked(authority: Authority) -> None:
    tls = ServerTls(*authority.issue("server", "etcd.example"))
    binary = etcd_servers.binary("installed")
    with EtcdServer(binary=binary, tls=tls, arguments=etcd_servers.ALONE) as server:
        checked = EtcdClient([server.url], tls=TlsFiles(authority.ca))
        with pytest.raises(MembershipError, match=r"127\.0\.0\.1"):
            checked.get("/a")
        checked.close()
        lenient = EtcdClient([server.url], tls=TlsFiles(authority.ca, verify_hostname=False))
        assert lenient.get("/a") is None
        lenient.close()


def test_with_authentication_a_common_name_is_refused_and_an_empty_one_is_not(
    tls_etcd: EtcdServer, authority: Authority
) -> None:
    nameless = TlsFiles(authority.ca, *authority.issue("client", "worker.example"))
    named = TlsFiles(authority.ca, *authority.issue("named", "worker.example", common_name="kara"))
    unlocked = EtcdClient([tls_etcd.url], tls=nameless)
    enable_auth(unlocked, root_password="r00t", user="kara", password=PASSWORD, prefixes=["/k/"])
    unlocked.close()

    good = EtcdClient([tls_etcd.url], tls=nameless, username="kara", password=PASSWORD)
    good.put("/k/a", b"x")
    good.close()
    bad = EtcdClient([tls_etcd.url], tls=named, username="kara", password=PASSWORD)
    with pytest.raises(MembershipError, match="CommonName"):
        bad.get("/k/a")
    bad.close()
