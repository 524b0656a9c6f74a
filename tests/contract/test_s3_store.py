"""What only the S3 store has: its URLs, options and credentials, and uploads to real servers."""

from __future__ import annotations

import io
import random
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3_servers
from services import require_module
from stores import SECRET
from stores_s3 import SERVERS, s3_options

from kara_cache.errors import ConfigError, StaleVersion
from kara_cache.ufs import UnderStore, open_store
from kara_cache.ufs.object_store import SINGLE_PUT_BYTES
from kara_cache.ufs.object_writer import PART_BYTES

require_module("boto3")
KEYS = {"access_key_id": "id", "secret_access_key": SECRET}

pytestmark = pytest.mark.s3


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest) -> str:
    return s3_servers.address(SERVERS[request.param])


@pytest.fixture
def store(url: str) -> Iterator[UnderStore]:
    root = f"s3://{s3_servers.BUCKET}/{uuid4().hex}"
    with closing(open_store(root, s3_options(url))) as found:
        yield found


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read(store: UnderStore, path: str, start: int, length: int, **more: Any) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: store.read_into(path, start, memoryview(buffer), **more)])


# -- URLs, options, credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://data", "s3://data"),
        ("s3://data/", "s3://data"),
        ("s3a://data/set 1/?#%20", "s3://data/set 1/?#%20"),
    ],
)
def test_url_of_a_store(url: str, shown: str) -> None:
    with closing(open_store(url, KEYS)) as store:
        assert store.url == shown
        assert repr(store) == f"<S3Store {shown}>"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("s3://", KEYS, "s3://bucket/prefix"),
        (f"s3://id:{SECRET}@data", {}, "keys in the options"),
        ("s3://data/../x", KEYS, "not allowed"),
        ("s3://data", {"access_key_id": "id"}, "go together"),
        ("s3://data", {"secret_access_key": SECRET}, "go together"),
        ("s3://data", {**KEYS, "anonymous": True}, "not both"),
        ("s3://data", {**KEYS, "addressing_style": "paht"}, "addressing_style 'paht'"),
        ("s3://data", {**KEYS, "endpoint_url": "host:9000"}, "endpoint_url"),
        ("s3://data", {**KEYS, "endpoint_url": f"http://u:{SECRET}@host"}, "endpoint_url"),
        ("s3://data", {**KEYS, "endpoint": "http://host"}, "endpoint"),
        ("s3://data", {**KEYS, "ca_file": "/none"}, "ca_file '/none'"),
    ],
)
def test_wrong_configuration(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(url, options)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_options_show_no_secret() -> None:
    from kara_cache.ufs.s3 import S3Options

    assert SECRET not in repr(S3Options(access_key_id="id", secret_access_key=SECRET, session_token=SECRET))


def test_no_credentials_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with (
        closing(open_store("s3://data", {"endpoint_url": "http://127.0.0.1:1"})) as store,
        pytest.raises(PermissionError, match="no usable credentials"),
    ):
        store.info("a")


def test_credentials_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_servers.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    options = {"endpoint_url": url, "addressing_style": "path"}
    with closing(open_store(f"s3://{s3_servers.BUCKET}/{uuid4().hex}", options)) as store:
        assert store.write("a", b"x").size == 1


@pytest.mark.parametrize("url", ["s3-seaweed"], indirect=True)
def test_wrong_secret(url: str) -> None:
    wrong = s3_options(url, secret_access_key=SECRET + "-wrong")
    with closing(open_store(f"s3://{s3_servers.BUCKET}", wrong)) as store:
        for call in (
            lambda: store.info("ready"),
            lambda: read(store, "ready", 0, 1),
            lambda: list(store.list("")),
            lambda: store.write("b", b"x"),
            lambda: store.delete("ready"),
        ):
            with pytest.raises(PermissionError) as caught:
                call()
            assert SECRET not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(PermissionError, match="SignatureDoesNotMatch"):
            read(store, "ready", 0, 1)


def test_missing_bucket(url: str) -> None:
    with closing(open_store(f"s3://no-such-{uuid4().hex}", s3_options(url))) as store:
        for call in (
            lambda: store.info("a"),
            lambda: store.info(""),
            lambda: read(store, "a", 0, 1),
            lambda: list(store.list("")),
        ):
            with pytest.raises(FileNotFoundError):
                call()


# -- uploads


def test_upload_in_parts(store: UnderStore) -> None:
    data = content(2 * PART_BYTES + 1000)
    with store.open_writer("a") as writer:
        for at in range(0, len(data), 3_000_000):
            writer.write(data[at : at + 3_000_000])
        info = writer.commit()
    assert info == store.info("a")
    assert (info.size, info.version[-2:]) == (len(data), "-3")
    at = PART_BYTES - 500
    assert read(store, "a", at, 1000, version=info.version) == data[at : at + 1000]
    assert read(store, "a", 0, len(data) + 1, version=info.version) == data
    assert list(store.list("")) == [info]


def test_large_write_is_an_upload(store: UnderStore) -> None:
    data = content(SINGLE_PUT_BYTES + 1)
    info = store.write("a", memoryview(data))
    assert info.version.endswith("-5")
    assert read(store, "a", SINGLE_PUT_BYTES - 10, 100, version=info.version) == data[-11:]


def test_aborted_upload_leaves_no_parts(url: str, store: UnderStore) -> None:
    writer = store.open_writer("a")
    writer.write(content(PART_BYTES + 1))
    behind = s3_servers.client(url, s3_servers.KEY_ID, SECRET)
    with closing(behind):
        key = f"{store.url.rpartition('/')[2]}/a"
        assert key in uploads_in(behind)
        writer.abort()
        assert key not in uploads_in(behind)
    with pytest.raises(FileNotFoundError):
        store.info("a")


def uploads_in(behind: Any) -> list[str]:
    listed = behind.list_multipart_uploads(Bucket=s3_servers.BUCKET)
    return [upload["Key"] for upload in listed.get("Uploads", ())]


def test_same_size_over_an_upload_is_another_version(store: UnderStore) -> None:
    first = store.write("a", content(1000, seed=1))
    with store.open_writer("a") as writer:
        writer.write(content(1000, seed=2))
    with pytest.raises(StaleVersion):
        read(store, "a", 0, 1000, version=first.version)


def test_s3_does_not_append(store: UnderStore) -> None:
    with pytest.raises(io.UnsupportedOperation):
        store.open_writer("a", append=True)
