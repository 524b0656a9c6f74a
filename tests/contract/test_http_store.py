"""One case for each way in which a web server can be wrong, broken or hostile."""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import pytest
import trustme

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs import address, open_store
from kara_cache.ufs.http import HttpOptions, HttpStore
from kara_worker.testing.rude_http_server import RudeHttpServer, Rudeness

DATA = bytes(range(256)) * 4000  # about a megabyte, no two ranges of less than 256 alike
OTHER = DATA[::-1]


@pytest.fixture
def server() -> Iterator[RudeHttpServer]:
    with RudeHttpServer({"a": DATA}) as server:
        yield server


@dataclass
class Client:
    """A store, and how long it wanted to sleep."""

    store: HttpStore
    slept_s: list[float] = field(default_factory=list)

    def read(self, start: int = 1000, length: int = 5000, *, path: str = "a", **more: Any) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: self.store.read_into(path, start, memoryview(buffer), **more)])


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    opened: list[Client] = []
    yield opened
    for client in opened:
        client.store.close()


@pytest.fixture
def client(server: RudeHttpServer, clients: list[Client]) -> Client:
    return connect(clients, server.url)


def connect(clients: list[Client], url: str, **options: Any) -> Client:
    slept_s: list[float] = []
    store = HttpStore(url, HttpOptions(**{"timeout_s": 20.0, **options}), sleep=slept_s.append)
    clients.append(Client(store, slept_s))
    return clients[-1]


def ranges(server: RudeHttpServer) -> list[str]:
    return [request.range for request in server.requests if request.method == "GET"]


# -- Range


def test_ranges_ignored(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(ignore_range=True))
    version = client.store.info("a").version
    assert client.read(version=version) == DATA[1000:6000]
    assert client.read(0, len(DATA) + 5, version=version) == DATA
    assert client.read(len(DATA) - 10, 100, version=version) == DATA[-10:]
    assert client.read(len(DATA) + 10, 100, version=version) == b""


def test_ranges_ignored_too_far_into_the_file(server: RudeHttpServer, clients: list[Client]) -> None:
    client = connect(clients, server.url, max_skip_bytes=1000)
    server.misbehave(Rudeness(ignore_range=True))
    assert client.read(1000) == DATA[1000:6000]
    with pytest.raises(UnderStoreError, match=r"ignores Range.*1001 bytes.*limit 1000.*max_skip_bytes"):
        client.read(1001)
    assert len(ranges(server)) == 2, "no use in asking again"


@pytest.mark.parametrize("chunked", [True, False])
def test_ranges_ignored_and_no_length(server: RudeHttpServer, client: Client, chunked: bool) -> None:
    server.misbehave(Rudeness(ignore_range=True, chunked=chunked, content_length=None if chunked else ""))
    assert client.read() == DATA[1000:6000]
    if chunked:
        assert client.read(len(DATA) - 10, 100) == DATA[-10:]
        assert client.read(len(DATA) + 10, 100) == b""
    else:  # the end of the connection is no proof that the file ends
        with pytest.raises(UnderStoreError, match="body ended 90 bytes early"):
            client.read(len(DATA) - 10, 100)


LIES = {
    "another start": "bytes 0-4999/1024000",
    "another start, off by one": "bytes 1001-6000/1024000",
    "more than was asked for": "bytes 1000-6001/1024000",
    "less than the body": "bytes 1000-5998/1024000",
    "beyond its own total": "bytes 1000-5999/3000",
    "backwards": "bytes 5999-1000/1024000",
    "another unit": "items 1000-5999/1024000",
    "no numbers": "bytes a-b/c",
    "unsatisfied": "bytes */1024000",
    "empty": "",
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_in_content_range(server: RudeHttpServer, client: Client, lie: str) -> None:
    server.misbehave(Rudeness(content_range=LIES[lie]), times=1)
    assert client.read() == DATA[1000:6000]
    assert len(ranges(server)) == 2
    server.misbehave(Rudeness(content_range=LIES[lie]))
    with pytest.raises(
        UnderStoreError, match=r"asked for bytes 1000-5999, answered .*5 attempts: all failed"
    ):
        client.read()


def test_more_than_was_asked_for(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(content_range="bytes 1000-6000/1024000", content_length="5001", long_by=1))
    with pytest.raises(UnderStoreError, match="asked for bytes 1000-5999, answered"):
        client.read()


def test_part_of_the_range_is_followed_by_the_rest(server: RudeHttpServer, client: Client) -> None:
    """RFC 9110, 15.3.7: a server may send less than was asked for, and says so."""
    server.misbehave(
        Rudeness(content_range="bytes 1000-1999/1024000", content_length="1000", short_by=4000), times=1
    )
    assert client.read() == DATA[1000:6000]
    assert ranges(server) == ["bytes=1000-5999", "bytes=2000-5999"]
    assert not client.slept_s


def test_total_unknown(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(content_range="bytes 1023000-1023999/*"), times=1)
    assert client.read(1023000, 2000) == DATA[1023000:]


def test_end_that_is_none(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(status=416), times=1)
    assert client.read() == DATA[1000:6000]
    server.misbehave(Rudeness(status=416), path="a", times=None)
    with pytest.raises(UnderStoreError):
        client.read()


# -- bodies


def test_short_body_is_continued_where_it_ended(server: RudeHttpServer, client: Client) -> None:
    version = client.store.info("a").version
    server.misbehave(Rudeness(short_by=3000), times=1)
    assert client.read(version=version) == DATA[1000:6000]
    assert ranges(server) == ["bytes=1000-5999", "bytes=3000-5999"]
    assert server.requests[-1].headers["if-match"] == version


def test_short_body_for_ever(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(short_by=5000))
    with pytest.raises(UnderStoreError, match="5 attempts"):
        client.read()


def test_short_body_of_an_unpinned_read_continues_the_same_version(
    server: RudeHttpServer, client: Client
) -> None:
    server.misbehave(Rudeness(short_by=3000), times=1)
    assert client.read() == DATA[1000:6000]
    assert ranges(server) == ["bytes=1000-5999", "bytes=3000-5999"]
    assert "if-match" in server.requests[-1].headers


def test_short_body_and_no_version_starts_over(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(short_by=3000, etag="none", last_modified=False), times=1)
    server.misbehave(Rudeness(etag="none", last_modified=False))
    assert client.read() == DATA[1000:6000]
    assert ranges(server) == ["bytes=1000-5999", "bytes=1000-5999"]


def test_short_body_and_no_version_after_bytes_were_reported(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(short_by=300_000, etag="none", last_modified=False))
    reported: list[int] = []
    with pytest.raises(UnderStoreError, match="in use already"):
        client.read(0, 700_000, progress=reported.append)
    assert reported


def test_chunked_body_that_breaks_off(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(chunked=True, reset_after=2000), times=2)
    assert client.read() == DATA[1000:6000]


def test_chunked_body(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(chunked=True))
    assert client.read(0, 600_000) == DATA[:600_000]
    assert client.read(len(DATA) - 10, 100) == DATA[-10:]


def test_long_body(server: RudeHttpServer, client: Client) -> None:
    """Bytes that nobody announced must not become the next answer."""
    server.misbehave(Rudeness(long_by=100), times=3)
    for start in (0, 1000, 2000, 3000):
        assert client.read(start) == DATA[start : start + 5000]


def test_long_body_that_is_announced(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(long_by=100, content_length="5100"), times=1)
    assert client.read() == DATA[1000:6000]
    assert len(ranges(server)) == 2


def test_long_chunked_body(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(long_by=100, chunked=True))
    with pytest.raises(UnderStoreError, match="more than the 5000 bytes"):
        client.read()


@pytest.mark.parametrize("after", [0, 1, 100_000, 999_999])
def test_reset_in_the_middle_of_the_body(server: RudeHttpServer, client: Client, after: int) -> None:
    version = client.store.info("a").version
    server.misbehave(Rudeness(reset_after=after), times=2)
    assert client.read(0, len(DATA), version=version) == DATA
    starts = [int(asked[6:].partition("-")[0]) for asked in ranges(server)]
    assert len(starts) > 1
    assert starts == sorted(starts)


@pytest.mark.parametrize("after", [0, 2000])
def test_stall(server: RudeHttpServer, clients: list[Client], after: int) -> None:
    client = connect(clients, server.url, timeout_s=1.5)  # silence is 0.3 s
    version = client.store.info("a").version
    server.misbehave(Rudeness(stall_after=after), times=1)
    assert client.read(version=version) == DATA[1000:6000]
    assert ranges(server) == ["bytes=1000-5999", f"bytes={1000 + after}-5999"]


def test_stall_for_ever_ends(server: RudeHttpServer, clients: list[Client]) -> None:
    client = connect(clients, server.url, timeout_s=0.5)
    server.misbehave(Rudeness(stall_after=100))
    with pytest.raises(UnderStoreError, match=r"attempt|no time left"):
        client.read()


def test_silence_instead_of_an_answer(server: RudeHttpServer, clients: list[Client]) -> None:
    client = connect(clients, server.url, timeout_s=1.5)
    server.misbehave(Rudeness(silent=True), times=1)
    assert client.read() == DATA[1000:6000]


def test_dribble_ends_by_the_deadline(server: RudeHttpServer, clients: list[Client]) -> None:
    client = connect(clients, server.url, timeout_s=0.5)
    server.misbehave(Rudeness(bytes_per_s=50))
    with pytest.raises(UnderStoreError, match="no time left"):
        client.read()


def test_connection_closed_without_an_answer(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(drop=True), times=2)
    assert client.read() == DATA[1000:6000]


def test_nobody_listens(clients: list[Client]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        client = connect(clients, f"http://127.0.0.1:{sock.getsockname()[1]}")
        with pytest.raises(UnderStoreError, match="cannot connect"):
            client.read()
    assert len(client.slept_s) == 4


def test_gzip_although_identity_was_asked_for(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(gzip=True))
    with pytest.raises(UnderStoreError, match="Content-Encoding gzip"):
        client.read()
    with pytest.raises(UnderStoreError, match="Content-Encoding gzip"):
        client.store.info("a")
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


# -- statuses


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_status_that_passes(server: RudeHttpServer, client: Client, status: int) -> None:
    server.misbehave(Rudeness(status=status), times=2)
    assert client.read() == DATA[1000:6000]
    server.misbehave(Rudeness(status=status), times=2)
    assert client.store.info("a").size == len(DATA)
    assert len(client.slept_s) == 4


@pytest.mark.parametrize("status", [429, 503])
def test_status_that_does_not_pass(server: RudeHttpServer, client: Client, status: int) -> None:
    server.misbehave(Rudeness(status=status))
    with pytest.raises(UnderStoreError, match=rf"/a: HTTP status {status} \(5 attempts: all failed\)"):
        client.read()
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, PermissionError),
        (403, PermissionError),
        (404, FileNotFoundError),
        (410, FileNotFoundError),
        (400, UnderStoreError),
        (304, UnderStoreError),
        (501, UnderStoreError),
    ],
)
def test_status_that_is_an_answer(
    server: RudeHttpServer, client: Client, status: int, error: type[Exception]
) -> None:
    server.misbehave(Rudeness(status=status))
    with pytest.raises(error, match=f"HTTP status {status}"):
        client.read()
    assert len(server.requests) == 1
    with pytest.raises(error, match=f"HTTP status {status}"):
        client.store.info("a")
    assert not client.slept_s


def test_retry_after_seconds(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(status=503, retry_after="3"), times=1)
    assert client.read() == DATA[1000:6000]
    assert [round(slept, 1) for slept in client.slept_s] in ([3.0], [3.1])


def test_retry_after_a_date(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(status=429, retry_after=formatdate(time.time() - 100, usegmt=True)), times=1)
    assert client.read() == DATA[1000:6000]
    assert client.slept_s[0] < 0.1


def test_retry_after_longer_than_we_wait(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(status=503, retry_after="3600"))
    with pytest.raises(UnderStoreError, match="asked to wait 3600 s, limit 5"):
        client.read()
    assert len(server.requests) == 1


def test_store_in_a_brown_out_is_not_asked_twice_as_much(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(status=503))
    calls = 300
    for _ in range(calls):
        with pytest.raises(UnderStoreError):
            client.read()
    reserve = 20
    assert len(server.requests) <= calls * 1.1 + reserve


# -- versions


@pytest.mark.parametrize(
    "rude",
    [
        Rudeness(ignore_if_match=True),
        Rudeness(ignore_if_match=True, ignore_range=True),
        Rudeness(etag="weak"),
        Rudeness(etag="none"),
        Rudeness(etag="weak", last_modified=False),
        Rudeness(etag="none", ignore_range=True),
    ],
    ids=str,
)
def test_overwritten_with_the_same_size(server: RudeHttpServer, client: Client, rude: Rudeness) -> None:
    server.misbehave(rude)
    version = client.store.info("a").version
    assert client.read(version=version) == DATA[1000:6000]
    server.put("a", OTHER)
    with pytest.raises(StaleVersion):
        client.read(version=version)
    assert client.read(version=client.store.info("a").version) == OTHER[1000:6000]


@pytest.mark.parametrize("etag", ["strong", "none"])
def test_end_of_a_shorter_version(server: RudeHttpServer, client: Client, etag: Any) -> None:
    server.misbehave(Rudeness(ignore_if_match=True, etag=etag))
    version = client.store.info("a").version
    server.put("a", OTHER[:100])
    for start in (0, 100, 1000):  # the last two are answered 416
        with pytest.raises(StaleVersion):
            client.read(start, version=version)


def test_weak_etag_is_not_sent_in_if_match(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(etag="weak"))
    client.read(version=client.store.info("a").version)
    assert not any("if-match" in request.headers for request in server.requests)


def test_nothing_to_pin_by(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(etag="none", last_modified=False))
    assert client.store.info("a").version == ""
    assert client.read(version="") == DATA[1000:6000]


def test_answer_without_the_version_that_info_had(server: RudeHttpServer, client: Client) -> None:
    version = client.store.info("a").version
    server.misbehave(Rudeness(etag="none", last_modified=False))
    with pytest.raises(UnderStoreError, match="does not say its version"):
        client.read(version=version)


@pytest.mark.parametrize("etag", ["strong", "none"])
def test_overwritten_while_a_broken_body_is_continued(
    server: RudeHttpServer, client: Client, etag: Any
) -> None:
    server.misbehave(Rudeness(etag=etag))
    version = client.store.info("a").version
    server.behave()
    server.misbehave(Rudeness(etag=etag, short_by=3000, then_put=OTHER), times=1)
    server.misbehave(Rudeness(etag=etag))
    with pytest.raises(StaleVersion):
        client.read(version=version)


def test_overwritten_while_an_unpinned_read_is_continued(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(short_by=3000, then_put=OTHER), times=1)
    assert client.read() == OTHER[1000:6000], "from the start, all of the new version"


def test_overwritten_while_an_unpinned_read_is_in_use_already(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(short_by=300_000, then_put=OTHER), times=1)
    reported: list[int] = []
    with pytest.raises(StaleVersion):
        client.read(0, 700_000, progress=reported.append)
    assert reported


def test_deleted_while_a_broken_body_is_continued(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(short_by=3000), times=1)
    server.misbehave(Rudeness(status=404))
    with pytest.raises(FileNotFoundError):
        client.read()


# -- HEAD


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_head_not_allowed(server: RudeHttpServer, client: Client, status: int) -> None:
    info = client.store.info("a")
    server.misbehave(Rudeness(head_status=status))
    assert client.store.info("a") == info
    assert server.requests[-1].range == "bytes=0-0"
    server.put("empty", b"")
    assert client.store.info("empty").size == 0
    with pytest.raises(FileNotFoundError):
        client.store.info("missing")


@pytest.mark.parametrize("length", ["0", ""])
def test_head_that_does_not_know_the_size(server: RudeHttpServer, client: Client, length: str) -> None:
    info = client.store.info("a")
    server.misbehave(Rudeness(content_length=length), times=1)
    assert client.store.info("a") == info


def test_head_not_allowed_and_ranges_ignored(server: RudeHttpServer, client: Client) -> None:
    info = client.store.info("a")
    server.misbehave(Rudeness(head_status=405, ignore_range=True))
    assert client.store.info("a") == info


def test_size_that_nobody_knows(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(chunked=True, ignore_range=True))
    with pytest.raises(UnderStoreError, match="does not say how large"):
        client.store.info("a")


# -- redirects and addresses


def test_redirect(server: RudeHttpServer, client: Client) -> None:
    server.put("there", OTHER)
    server.misbehave(Rudeness(redirect_to="/there"), path="a")
    assert client.store.info("a").size == len(OTHER)
    assert client.read(version=client.store.info("a").version) == OTHER[1000:6000]


def test_redirects_without_end(server: RudeHttpServer, client: Client) -> None:
    server.misbehave(Rudeness(redirect_to="/a"), times=5)
    assert client.read() == DATA[1000:6000]
    server.misbehave(Rudeness(redirect_to="/a"))
    with pytest.raises(UnderStoreError, match="more than 5 redirects"):
        client.read()
    assert len(server.requests) == 6 + 6


def test_redirect_to_another_host_takes_no_credentials_along(
    server: RudeHttpServer, clients: list[Client]
) -> None:
    with RudeHttpServer({"a": OTHER}) as other:
        url = server.url.replace("://", "://user:hunter2@")
        client = connect(clients, url, headers={"X-Token": "hunter2"})
        server.misbehave(Rudeness(redirect_to=f"http://user:hunter2@127.0.0.1:{other.port}/a"))
        assert client.read() == OTHER[1000:6000]
        assert server.requests[0].headers["authorization"] == "Basic dXNlcjpodW50ZXIy"
        assert server.requests[0].headers["x-token"] == "hunter2"
        assert not {"authorization", "x-token", "cookie"} & other.requests[0].headers.keys()


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://100.100.100.200/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://2852039166/",
        "http://0xA9FEA9FE/",
        "http://0251.0376.0251.0376/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/a",
        "javascript:alert(1)",
    ],
)
def test_redirect_to_where_no_store_may_go(
    server: RudeHttpServer, clients: list[Client], target: str
) -> None:
    client = connect(clients, server.url, allow_private=True)
    server.misbehave(Rudeness(redirect_to=target))
    with pytest.raises(PermissionError):
        client.read()
    with pytest.raises(PermissionError):
        client.store.info("a")
    assert not client.slept_s


@pytest.mark.parametrize(
    "target", ["http://[broken/", "http://127.0.0.1:99999/", "http://" + "x" * 64 + ".test/"]
)
def test_redirect_to_no_url(server: RudeHttpServer, client: Client, target: str) -> None:
    server.misbehave(Rudeness(redirect_to=target))
    with pytest.raises(UnderStoreError, match=r"no URL|cannot resolve"):
        client.read()


def test_mount_of_the_metadata_service(clients: list[Client]) -> None:
    client = connect(clients, "http://169.254.169.254/latest", allow_private=True)
    with pytest.raises(PermissionError, match="metadata"):
        client.read()


@pytest.fixture
def only_localhost_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 plays a public host, 127.0.0.2 a neighbour inside."""
    monkeypatch.setattr(address, "_is_private", lambda found: str(found) != "127.0.0.1")


@pytest.mark.usefixtures("only_localhost_is_public")
@pytest.mark.parametrize("name", ["127.0.0.2", "127.2", "0x7f000002"])
def test_redirect_from_a_public_host_to_a_private_one(
    server: RudeHttpServer, clients: list[Client], name: str
) -> None:
    server.misbehave(Rudeness(redirect_to=f"http://{name}:{server.port}/a"))
    client = connect(clients, server.url)
    with pytest.raises(PermissionError, match="allow_private"):
        client.read()
    allowed = connect(clients, server.url, allow_private=True)
    with pytest.raises(UnderStoreError, match="cannot connect"):  # nobody listens there
        allowed.read()


@pytest.mark.usefixtures("only_localhost_is_public")
def test_name_that_is_rebound_to_a_private_address(
    server: RudeHttpServer, clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    now = {"home.test": "127.0.0.1"}

    def resolve_here(host: str, *more: Any, **named: Any) -> Any:
        return resolve(now.get(host, host), *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    client = connect(clients, f"http://home.test:{server.port}")
    assert client.read() == DATA[1000:6000]
    now["home.test"] = "127.0.0.2"
    server.misbehave(Rudeness(drop=True))  # so that it has to connect again
    with pytest.raises(PermissionError, match=r"127\.0\.0\.2"):
        client.read()


# -- TLS


@pytest.mark.usefixtures("only_localhost_is_public")
def test_name_with_a_private_address_beside_the_public_one(
    server: RudeHttpServer, clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def resolve_here(host: str, *more: Any, **named: Any) -> Any:
        return resolve("127.0.0.2", *more, **named) + resolve("127.0.0.1", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    client = connect(clients, f"http://home.test:{server.port}")
    for _ in range(3):
        server.misbehave(Rudeness(drop=True), times=1)  # so that it has to connect again
        assert client.read() == DATA[1000:6000]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[RudeHttpServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with RudeHttpServer({"a": DATA}, tls=context) as server:
        yield server


def test_tls(secure: RudeHttpServer, authority: trustme.CA, clients: list[Client], tmp_path: Any) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = connect(clients, secure.url, ca=str(tmp_path / "ca.pem"))
    assert client.read(version=client.store.info("a").version) == DATA[1000:6000]
    secure.misbehave(Rudeness(reset_after=100_000), times=1)
    assert client.read(0, len(DATA)) == DATA


def test_tls_certificate_of_a_stranger(secure: RudeHttpServer, clients: list[Client]) -> None:
    client = connect(clients, secure.url)
    with pytest.raises(UnderStoreError, match="CERTIFICATE_VERIFY_FAILED"):
        client.read()
    assert not client.slept_s, "it would be the same next time"


def test_tls_certificate_for_another_name(
    authority: trustme.CA, clients: list[Client], tmp_path: Any
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.test").configure_cert(context)
    with RudeHttpServer({"a": DATA}, tls=context) as server:
        client = connect(clients, server.url, ca=str(tmp_path / "ca.pem"))
        with pytest.raises(UnderStoreError, match=r"127\.0\.0\.1"):
            client.read()
        assert not server.requests


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_tls_unverified(secure: RudeHttpServer, clients: list[Client]) -> None:
    client = connect(clients, secure.url, verify=False)
    assert client.read() == DATA[1000:6000]


def test_redirect_from_https_to_http(
    secure: RudeHttpServer,
    server: RudeHttpServer,
    authority: trustme.CA,
    clients: list[Client],
    tmp_path: Any,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client = connect(clients, secure.url, ca=str(tmp_path / "ca.pem"))
    secure.misbehave(Rudeness(redirect_to=server.url + "/a"))
    with pytest.raises(PermissionError, match="from https to http"):
        client.read()
    assert not server.requests


# -- listing

APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /d</title></head><body><h1>Index of /d</h1><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>
<tr><td><a href="/">Parent Directory</a></td></tr>
<tr><td><a href="a%20b.bin">a b.bin</a></td><td>2024-01-01 10:00</td><td>1.0K</td></tr>
<tr><td><a href="sub/">sub/</a></td><td>-</td></tr></table><address>Apache</address></body></html>"""


def test_list_a_page_as_apache_makes_it(server: RudeHttpServer, client: Client) -> None:
    server.put("d/", APACHE.encode())
    server.put("d/a b.bin", b"1234")
    assert [(entry.path, entry.size, entry.is_dir) for entry in client.store.list("d")] == [
        ("d/a b.bin", 4, False),
        ("d/sub", 0, True),
    ]


@pytest.mark.parametrize(
    "href",
    [
        "http://elsewhere.example/d/x",
        "//elsewhere.example/d/x",
        "https://127.0.0.1/d/x",
        "../x",
        "/x",
        "sub/../../x",
        "..%2Fx",
        "%2e%2e/",
        "..",
        "x%00y",
        "x?signature=1",
        "javascript:alert(1)",
        "mailto:x@example.org",
        "#x",
        "",
        "sub/deep",
        "http://[broken/",
    ],
)
def test_list_stays_below_its_directory(server: RudeHttpServer, client: Client, href: str) -> None:
    server.put("d/", f'<title>Index of</title><a href="{href}">x</a><a href="y">y</a>'.encode())
    server.put("d/y", b"1")
    assert [entry.path for entry in client.store.list("d", recursive=True)] == ["d/y"]


def test_list_a_page_that_is_no_listing(server: RudeHttpServer, client: Client) -> None:
    server.put("d/", b"<html><title>Welcome</title><a href='https://example.org'>x</a></html>")
    with pytest.raises(io.UnsupportedOperation, match="is not a listing"):
        list(client.store.list("d"))


def test_list_an_empty_page(server: RudeHttpServer, client: Client) -> None:
    server.put("d/", b"<html><title>Index of /d/</title><a href='../'>../</a></html>")
    assert list(client.store.list("d")) == []


def test_list_where_it_is_forbidden(server: RudeHttpServer, client: Client) -> None:
    server.put("d/x", b"1")
    server.misbehave(Rudeness(status=403), path="d/")
    with pytest.raises(PermissionError):
        list(client.store.list("d"))


def test_list_leaves_out_what_is_deleted_meanwhile(server: RudeHttpServer, client: Client) -> None:
    for name in "xyz":
        server.put(f"d/{name}", b"1")
    entries = client.store.list("d")
    assert next(entries).path == "d/x"
    server.delete("d/y")
    assert [entry.path for entry in entries] == ["d/z"]


def test_list_of_a_circle_ends(server: RudeHttpServer, client: Client) -> None:
    for depth in range(110):
        server.put("d/" * depth, b'<title>Index of</title><a href="d/">d</a>')
    with pytest.raises(UnderStoreError, match="directories deep"):
        list(client.store.list("", recursive=True))


# -- the rest


def test_connection_is_kept(server: RudeHttpServer, client: Client) -> None:
    version = client.store.info("a").version
    for start in range(0, 50_000, 5000):
        client.read(start, version=version)
        client.read(start, len(DATA), version=version)
    with pytest.raises(FileNotFoundError):
        client.store.info("missing")
    with pytest.raises(StaleVersion):
        client.read(version='"another"')
    client.read(len(DATA), version=version)
    assert len({request.connection for request in server.requests}) == 1


def test_error_of_the_callers_progress_passes(server: RudeHttpServer, client: Client) -> None:
    def fail(_valid: int) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        client.read(0, 500_000, progress=fail)
    assert client.read() == DATA[1000:6000]


def test_query_of_the_mount_goes_with_every_request_and_into_no_message(
    server: RudeHttpServer, clients: list[Client]
) -> None:
    client = connect(clients, server.url + "/?signature=hunter2")
    assert client.read() == DATA[1000:6000]
    with pytest.raises(FileNotFoundError) as caught:
        client.store.info("missing")
    server.misbehave(Rudeness(status=503))
    with pytest.raises(UnderStoreError) as failed:
        client.read()
    for text in (str(caught.value), str(failed.value), client.store.url, repr(client.store)):
        assert "hunter2" not in text


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://", {}, "expected http"),
        ("http:///path", {}, "expected http"),
        ("http://host/#fragment", {}, "fragment"),
        ("http://user:hunter2@host/", {"tokens": 1}, "tokens"),
        ("http://user:hunter2@host/", {"timeout_s": 0}, "timeout_s"),
        ("http://host/", {"retries": "many"}, "retries"),
        ("https://host/", {"ca": "/does/not/exist"}, "option ca"),
    ],
)
def test_wrong_configuration(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(url, options)
    assert "hunter2" not in str(caught.value)


def test_options_as_text() -> None:
    store = open_store("http://host/", {"timeout_s": "5", "retries": "0", "allow_private": "true"})
    assert store.url == "http://host"
