"""What only the OSS store has: its URLs and options, two signatures, appending, TLS."""

from __future__ import annotations

import io
import ssl
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from services import require_module
from stores import SECRET
from stores_oss import TOKEN, oss_options

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs import UnderStore, open_store
from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_server import OssServer

require_module("oss2")
KEYS = {"access_key_id": "id", "access_key_secret": SECRET}

pytestmark = [
    pytest.mark.oss,
    # oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@pytest.fixture
def server() -> Iterator[OssServer]:
    with OssServer(key_secret=SECRET, buckets=["bucket"]) as running:
        yield running


@contextmanager
def opened(server: OssServer, **options: Any) -> Iterator[UnderStore]:
    with closing(open_store(f"oss://{server.host}/bucket", oss_options(server, **options))) as store:
        yield store


def read(store: UnderStore, path: str, start: int, length: int) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: store.read_into(path, start, memoryview(buffer))])


def texts_of(error: BaseException | None) -> str:
    """All that a log, a traceback or a debugger's hover would show of an error and its causes."""
    shown = "".join(traceback.format_exception(error)) if error is not None else ""
    while error is not None:
        shown += f"{error!r} {error!s} {error.args!r} {vars(error)!r}"
        error = error.__cause__ or error.__context__
    return shown


# -- URLs and options


@pytest.mark.parametrize(
    ("url", "options", "shown"),
    [
        (
            "oss://oss-cn-hangzhou.aliyuncs.com/data/set 1/",
            {},
            "oss://oss-cn-hangzhou.aliyuncs.com/data/set 1",
        ),
        ("oss://127.0.0.1:9000/data", {"region": "cn-x"}, "oss://127.0.0.1:9000/data"),
        (
            "oss://data/a/b",
            {"endpoint": "oss-eu-west-1.aliyuncs.com"},
            "oss://oss-eu-west-1.aliyuncs.com/data/a/b",
        ),
        ("oss://data", {"endpoint": "http://localhost:9000/", "region": "x"}, "oss://localhost:9000/data"),
        (
            "oss://store.example.com/data/a?b#c%20",
            {"signature": "v1"},
            "oss://store.example.com/data/a?b#c%20",
        ),
    ],
)
def test_url_of_a_store(url: str, options: dict[str, Any], shown: str) -> None:
    with closing(open_store(url, KEYS | options)) as store:
        assert store.url == shown
        assert repr(store) == f"<OssStore {shown}>"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("oss://h/data", KEYS, "option region"),
        ("oss://oss-accelerate.aliyuncs.com/data", KEYS, "option region"),
        ("oss://h/data", {"access_key_id": "id"}, "access_key_id without access_key_secret"),
        ("oss://h/data", {"app_secret": SECRET}, "access_key_secret without access_key_id"),
        ("oss://h/data", {**KEYS, "signature": "v3"}, "want v1 or v4"),
        ("oss://h/data", {**KEYS, "retrys": 3}, "retrys"),
        ("oss://h/data", {**KEYS, "retries": "many"}, "retries"),
        (f"oss://id:{SECRET}@h/data", {}, "keys in the options"),
        ("oss://h", {}, "bucket"),
        ("oss://h/x", {}, "bucket 'x'"),
        ("oss://h/data/../other", {}, "not allowed"),
        ("oss:///data", {}, "endpoint"),
        ("oss://h/data", {"ca_file": "/none"}, "ca_file '/none'"),
        ("oss://ho st/data", {}, "endpoint"),
    ],
)
def test_wrong_configuration(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(url, options)
    assert SECRET not in texts_of(caught.value)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou"),
        ("oss-cn-shanghai-internal.aliyuncs.com", "cn-shanghai"),
        ("oss-us-west-1.aliyuncs.com:443", "us-west-1"),
        ("oss-rg-china-mainland.aliyuncs.com", "rg-china-mainland"),
        ("oss-accelerate.aliyuncs.com", ""),
        ("oss-cn-hangzhou.example.com", ""),
        ("127.0.0.1:9000", ""),
    ],
)
def test_region_is_read_from_the_endpoint(host: str, region: str) -> None:
    from kara_cache.ufs.oss import _region_of

    assert _region_of(host) == region


def test_options_show_no_secret() -> None:
    from kara_cache.ufs.oss import OssOptions

    options = OssOptions(
        access_key_id="id", access_key_secret=SECRET, app_secret=SECRET, security_token=TOKEN
    )
    assert SECRET not in repr(options)


def test_keys_by_the_names_of_kara_storage(server: OssServer) -> None:
    options = {"app_key": "test-key-id", "app_secret": SECRET, "region": "cn-hangzhou", "use_ssl": False}
    with closing(open_store(f"oss://{server.host}/bucket", options)) as store:
        assert store.write("a", b"x").size == 1


def test_public_bucket_without_keys() -> None:
    with (
        OssServer(public_buckets=["public"]) as server,
        closing(open_store(f"oss://{server.host}/public", {"use_ssl": False})) as store,
    ):
        server.objects.put("public", "a", b"12345")
        assert store.info("a").size == 5
        assert read(store, "a", 1, 3) == b"234"
        assert [entry.path for entry in store.list("")] == ["a"]
        with pytest.raises(PermissionError, match="AccessDenied"):
            store.write("b", b"x")


# -- who may, and what is said about it


@pytest.mark.parametrize("signature", ["v1", "v4"])
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"access_key_secret": SECRET + "-wrong"}, "SignatureDoesNotMatch"),
        ({"access_key_secret": SECRET + "-wrong", "security_token": TOKEN}, "SignatureDoesNotMatch"),
        ({"access_key_id": "nobody"}, "InvalidAccessKeyId"),
        ({"security_token": TOKEN}, "InvalidSecurityToken"),
    ],
)
def test_wrong_credentials(server: OssServer, signature: str, wrong: dict[str, str], code: str) -> None:
    server.objects.put("bucket", "a", b"x")
    with opened(server, signature=signature, **wrong) as store:
        calls: list[Callable[[], Any]] = [
            lambda: store.info("a"),
            lambda: read(store, "a", 0, 1),
            lambda: list(store.list("")),
            lambda: store.write("b", b"x"),
            lambda: store.delete("a"),
        ]
        for call in calls:
            with pytest.raises(PermissionError, match=rf"{code}: .* \(request [0-9A-F]{{24}}\)") as caught:
                call()
            assert SECRET not in texts_of(caught.value), "the vendor's error quotes signed headers"
    assert len(server.requests.all()) == len(calls), "refusals are not asked for again"


def test_clock_that_is_wrong(server: OssServer) -> None:
    with (
        OssServer(key_secret=SECRET, buckets=["bucket"], clock=lambda: 1e9) as server,
        opened(server) as store,
        pytest.raises(PermissionError, match="RequestTimeTooSkewed"),
    ):
        store.info("a")


def test_netrc_does_not_replace_the_signature(
    server: OssServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requests`, which oss2 uses otherwise, would send this password as the Authorization header."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with opened(server) as store:
        assert store.write("a", b"x").size == 1


def test_proxy_of_the_environment(server: OssServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with OssServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        monkeypatch.setenv("no_proxy", "")
        with opened(server, retries=0) as store, pytest.raises(PermissionError):
            store.info("a")
        assert len(proxy.requests.all()) == 1
        assert server.requests.all() == []
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with opened(server) as store, pytest.raises(FileNotFoundError):
            store.info("a")
        assert len(proxy.requests.all()) == 1


# -- TLS


def test_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    with OssServer(key_secret=SECRET, buckets=["bucket"], tls=context) as server:
        data = bytes(range(256)) * 10_000
        with opened(server, use_ssl=True, ca_file=str(ca_file)) as store:
            version = store.write("a", data).version
            buffer = bytearray(1_000_000)
            assert store.read_into("a", 7, memoryview(buffer), version=version) == 1_000_000
            assert buffer == data[7:1_000_007]
            assert server.connections == 2  # one for reads, one for all else
        with (
            opened(server, use_ssl=True) as store,
            pytest.raises(UnderStoreError, match="CERTIFICATE_VERIFY_FAILED") as caught,
        ):
            store.info("a")
        assert "attempts" not in str(caught.value), "distrust does not pass with time"
        assert server.connections == 3


# -- appending


def test_append_is_one_request_and_whole(server: OssServer) -> None:
    with opened(server) as store:
        for piece in (b"one ", b"two "):
            with store.open_writer("log", append=True) as writer:
                writer.write(piece)
                writer.write(b"...")
        assert read(store, "log", 0, 100) == b"one ...two ..."
    assert server.requests.count("POST") == 2


def test_append_whose_answer_was_lost_is_not_done_twice(server: OssServer) -> None:
    with opened(server) as store:
        with store.open_writer("log", append=True) as writer:
            writer.write(b"one ")
        server.faults.add(Fault(lost=True), method="POST")
        with store.open_writer("log", append=True) as writer:
            writer.write(b"two")
            assert writer.commit() == store.info("log")
        assert read(store, "log", 0, 100) == b"one two"


def test_append_behind_the_back_of_a_writer(server: OssServer) -> None:
    with opened(server) as store:
        writer = store.open_writer("log", append=True)
        writer.write(b"mine")
        with store.open_writer("log", append=True) as other:
            other.write(b"your")
        with pytest.raises(StaleVersion, match="PositionNotEqualToLength"):
            writer.commit()
        assert read(store, "log", 0, 100) == b"your"
        server.faults.add(Fault(lost=True), method="POST")
        late = store.open_writer("log", append=True)
        late.write(b"same")
        server.objects.append("bucket", "log", 4, b"size", {})
        with pytest.raises(StaleVersion):
            late.commit()


def test_append_to_what_was_not_appended(server: OssServer) -> None:
    with opened(server) as store:
        store.write("plain", b"x")
        with pytest.raises(io.UnsupportedOperation, match="Normal"):
            store.open_writer("plain", append=True)
        with pytest.raises(IsADirectoryError):
            store.open_writer("", append=True)
