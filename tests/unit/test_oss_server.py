"""The test OSS server, spoken to by the vendor's client library."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from services import require_module

from kara_worker.testing.oss_answers import resolve_range
from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_objects import MIN_PART_BYTES, ObjectShelf, OssRefused
from kara_worker.testing.oss_server import OssServer

oss2 = require_module("oss2")
SECRET = "a-secret-of-tests"
NAMES = ["plain", "with space", "a+b&c=d;e", "per%cent%2F", "q?#", "中文/é/😀", "<&>\"'", "..dots"]

pytestmark = [
    pytest.mark.oss,
    # oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@pytest.fixture
def server() -> Iterator[OssServer]:
    with OssServer(key_secret=SECRET, buckets=["bucket"]) as running:
        yield running


@pytest.fixture(params=["v1", "v4"])
def bucket(request: pytest.FixtureRequest, server: OssServer) -> Iterator[Any]:
    with connected(server, request.param) as found:
        yield found


class connected:
    """A bucket of oss2 whose connections end with the block."""

    def __init__(self, server: OssServer, version: str = "v4", *, secret: str = SECRET, **more: Any) -> None:
        auth = more.pop("auth", None) or oss2.make_auth("test-key-id", secret, version)
        self._session = oss2.Session()
        self._bucket = oss2.Bucket(
            auth,
            server.endpoint,
            more.pop("name", "bucket"),
            session=self._session,
            connect_timeout=10,
            region=more.pop("region", "cn-hangzhou"),
        )

    def __enter__(self) -> Any:
        return self._bucket

    def __exit__(self, *exc: object) -> None:
        self._session.session.close()


def bare_get(server: OssServer, path: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(server.host, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


# -- signatures


@pytest.mark.parametrize("name", NAMES)
def test_signed_requests_of_both_versions_are_accepted(bucket: Any, name: str) -> None:
    put = bucket.put_object(name, name.encode())  # oss2 compares its CRC64 with ours
    assert put.etag == hashlib.md5(name.encode()).hexdigest().upper()
    assert bucket.get_object(name).read() == name.encode()
    assert bucket.head_object(name).content_length == len(name.encode())
    assert [found.key for found in oss2.ObjectIterator(bucket, prefix=name[:2])] == [name]
    assert [found.key for found in oss2.ObjectIteratorV2(bucket, prefix=name[:2])] == [name]
    bucket.delete_object(name)
    assert not bucket.object_exists(name)


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_wrong_secret(server: OssServer, version: str) -> None:
    server.objects.put("bucket", "a", b"x")
    with connected(server, version, secret="wrong") as bucket:
        with pytest.raises(oss2.exceptions.SignatureDoesNotMatch) as caught:
            bucket.get_object("a")
        assert (caught.value.status, caught.value.code) == (403, "SignatureDoesNotMatch")
        with pytest.raises(oss2.exceptions.ServerError) as caught_head:
            bucket.head_object("a")
    assert (caught_head.value.status, caught_head.value.code) == (403, "SignatureDoesNotMatch")


def test_scope_of_another_region(server: OssServer) -> None:
    with (
        connected(server, region="cn-beijing") as bucket,
        pytest.raises(oss2.exceptions.SignatureDoesNotMatch),
    ):
        bucket.put_object("a", b"x")


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_unknown_key_and_no_key(server: OssServer, version: str) -> None:
    server.objects.put("bucket", "a", b"x")
    for auth, code in (
        (oss2.make_auth("nobody", SECRET, version), "InvalidAccessKeyId"),
        (oss2.AnonymousAuth(), "AccessDenied"),
    ):
        with connected(server, auth=auth) as bucket, pytest.raises(oss2.exceptions.ServerError) as caught:
            bucket.get_object("a")
        assert (caught.value.status, caught.value.code) == (403, code)


def test_public_bucket_is_read_without_a_signature_and_not_written() -> None:
    with OssServer(public_buckets=["open"]) as server:
        server.objects.put("open", "a", b"x")
        with connected(server, auth=oss2.AnonymousAuth(), name="open") as bucket:
            assert bucket.get_object("a").read() == b"x"
            with pytest.raises(oss2.exceptions.AccessDenied):
                bucket.put_object("a", b"y")


@pytest.mark.parametrize("version", ["v1", "v4"])
@pytest.mark.parametrize("ahead_s", [-1000, 1000])
def test_date_outside_of_fifteen_minutes(version: str, ahead_s: int) -> None:
    with (
        OssServer(key_secret=SECRET, buckets=["bucket"], clock=lambda: time.time() + ahead_s) as server,
        connected(server, version) as bucket,
        pytest.raises(oss2.exceptions.ServerError) as caught,
    ):
        bucket.put_object("a", b"x")
    assert (caught.value.status, caught.value.code) == (403, "RequestTimeTooSkewed")


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_security_token(version: str) -> None:
    with OssServer(key_secret=SECRET, security_token="token-1", buckets=["bucket"]) as server:
        for token, works in (("token-1", True), ("token-2", False)):
            auth = oss2.StsAuth("test-key-id", SECRET, token, auth_version=version)
            with connected(server, auth=auth) as bucket:
                if works:
                    bucket.put_object("a", b"x")
                    continue
                with pytest.raises(oss2.exceptions.ServerError) as caught:
                    bucket.put_object("a", b"x")
                assert caught.value.code == "InvalidSecurityToken"


def test_signed_header_may_not_change_on_its_way(server: OssServer) -> None:
    server.objects.put("bucket", "a", b"x")
    request = oss2.http.Request("GET", f"{server.endpoint}/bucket/a")
    oss2.make_auth("test-key-id", SECRET)._sign_request(request, "bucket", "a")
    headers = {name: value for name, value in request.headers.items() if value is not None}
    assert bare_get(server, "/bucket/a", **headers)[0] == 200
    status, document, _ = bare_get(server, "/bucket/a", **headers, **{"x-oss-range-behavior": "standard"})
    assert status == 403
    assert b"<Code>SignatureDoesNotMatch</Code>" in document


# -- objects


@pytest.mark.parametrize(
    ("header", "plain", "standard"),
    [
        ("", None, None),
        ("bytes=0-499", (0, 500), (0, 500)),
        ("bytes=500-", (500, 1000), (500, 1000)),
        ("bytes=-100", (900, 1000), (900, 1000)),
        ("bytes=999-999", (999, 1000), (999, 1000)),
        ("bytes=0-1000", None, (0, 1000)),
        ("bytes=500-2000", None, (500, 1000)),
        ("bytes=-2000", None, (0, 1000)),
        ("bytes=1000-2000", None, OssRefused),
        ("bytes=1000-", None, OssRefused),
        ("bytes=500-400", None, None),
        ("byte=0-499", None, None),
        ("bytes=-", None, None),
        ("bytes=0-9,20-29", (0, 10), (0, 10)),
    ],
)
def test_range_of_a_thousand_bytes(header: str, plain: Any, standard: Any) -> None:
    """The table of the developer reference, "Use HTTP Range requests"."""
    assert resolve_range(header, 1000, standard=False) == plain
    if standard is OssRefused:
        with pytest.raises(OssRefused) as caught:
            resolve_range(header, 1000, standard=True)
        assert (caught.value.status, caught.value.code) == (416, "InvalidRange")
    else:
        assert resolve_range(header, 1000, standard=True) == standard


def test_range_over_the_wire(server: OssServer, bucket: Any) -> None:
    data = random.Random(1).randbytes(1000)
    server.objects.put("bucket", "a", data)
    part = bucket.get_object("a", byte_range=(100, 199))
    assert (part.status, part.read(), part.headers["Content-Range"]) == (
        206,
        data[100:200],
        "bytes 100-199/1000",
    )
    assert bucket.get_object("a", byte_range=(None, 10)).read() == data[-10:]
    whole = bucket.get_object("a", byte_range=(500, 2000))
    assert (whole.status, whole.read()) == (200, data)
    standard = {"x-oss-range-behavior": "standard"}
    clipped = bucket.get_object("a", byte_range=(500, 2000), headers=standard)
    assert (clipped.status, clipped.read()) == (206, data[500:])
    with pytest.raises(oss2.exceptions.ServerError) as caught:
        bucket.get_object("a", byte_range=(1000, 2000), headers=standard)
    assert caught.value.status == 416


def test_conditions(server: OssServer, bucket: Any) -> None:
    made = server.objects.put("bucket", "a", b"x")
    later, earlier = formatdate(time.time() + 60, usegmt=True), formatdate(time.time() - 60, usegmt=True)
    for headers in ({"If-Match": made.etag}, {"If-Match": f'"{made.etag}"'}, {"If-Modified-Since": earlier}):
        assert bucket.get_object("a", headers=headers).read() == b"x"
    for headers in ({"If-Match": "other"}, {"If-Unmodified-Since": earlier}):
        with pytest.raises(oss2.exceptions.PreconditionFailed):
            bucket.get_object("a", headers=headers)
    for headers in ({"If-None-Match": made.etag}, {"If-Modified-Since": later}):
        with pytest.raises(oss2.exceptions.NotModified):
            bucket.get_object("a", headers=headers)


def test_what_is_not_there(server: OssServer, bucket: Any) -> None:
    with pytest.raises(oss2.exceptions.NoSuchKey):
        bucket.get_object("missing")
    with pytest.raises(oss2.exceptions.NotFound):
        bucket.head_object("missing")
    bucket.delete_object("missing")
    with connected(server, name="nowhere") as other, pytest.raises(oss2.exceptions.NoSuchBucket):
        other.get_object("a")


def test_body_that_is_not_what_its_digest_says(bucket: Any) -> None:
    digest = base64.b64encode(hashlib.md5(b"else").digest()).decode()
    with pytest.raises(oss2.exceptions.InvalidDigest):
        bucket.put_object("a", b"x", headers={"Content-MD5": digest})
    assert not bucket.object_exists("a")


def test_multipart(server: OssServer, bucket: Any) -> None:
    parts = [random.Random(i).randbytes(MIN_PART_BYTES + i) for i in range(3)]
    upload = bucket.init_multipart_upload("m").upload_id
    infos = []
    for number, data in enumerate(parts, start=1):
        sent = bucket.upload_part("m", upload, number, data)
        infos.append(oss2.models.PartInfo(number, sent.etag, size=len(data), part_crc=sent.crc))
    assert [part.part_number for part in oss2.PartIterator(bucket, "m", upload, max_parts=2)] == [1, 2, 3]
    assert [found.key for found in bucket.list_multipart_uploads().upload_list] == ["m"]
    assert not bucket.object_exists("m")
    assert bucket.complete_multipart_upload("m", upload, infos).etag.endswith("-3")
    assert bucket.get_object("m").read() == b"".join(parts)
    with pytest.raises(oss2.exceptions.NoSuchUpload):
        bucket.upload_part("m", upload, 1, b"late")
    aborted = bucket.init_multipart_upload("m").upload_id
    bucket.abort_multipart_upload("m", aborted)
    assert server.objects.uploads("bucket") == {}


@pytest.mark.parametrize(
    ("sizes", "numbers", "code"),
    [
        ([10, 10], [1, 2], "EntityTooSmall"),
        ([MIN_PART_BYTES, 10], [2, 1], "InvalidPartOrder"),
        ([MIN_PART_BYTES, 10], [1, 3], "InvalidPart"),
    ],
)
def test_multipart_that_cannot_be_completed(sizes: list[int], numbers: list[int], code: str) -> None:
    shelf = ObjectShelf()
    shelf.create_bucket("bucket")
    upload = shelf.begin_upload("bucket", "m", {})
    etags = {
        number: shelf.put_part(upload, "m", number, bytes(size)).etag
        for number, size in enumerate(sizes, start=1)
    }
    with pytest.raises(OssRefused) as caught:
        shelf.complete_upload(upload, "m", [(number, etags.get(number, "")) for number in numbers])
    assert caught.value.code == code


def test_append(bucket: Any) -> None:
    first = bucket.append_object("log", 0, b"one ", init_crc=0)
    second = bucket.append_object("log", first.next_position, b"two", init_crc=first.crc)
    assert (second.next_position, bucket.get_object("log").read()) == (7, b"one two")
    assert bucket.head_object("log").object_type == "Appendable"
    with pytest.raises(oss2.exceptions.PositionNotEqualToLength) as caught:
        bucket.append_object("log", 3, b"x")
    assert caught.value.next_position == 7
    bucket.put_object("plain", b"x")
    with pytest.raises(oss2.exceptions.ObjectNotAppendable):
        bucket.append_object("plain", 1, b"y")


def test_copy_and_batch_delete(bucket: Any) -> None:
    for name in NAMES:
        bucket.put_object(name, name.encode())
    bucket.copy_object("bucket", NAMES[-1], "copy")
    assert bucket.get_object("copy").read() == NAMES[-1].encode()
    assert bucket.batch_delete_objects(NAMES).deleted_keys == NAMES
    assert [found.key for found in oss2.ObjectIterator(bucket)] == ["copy"]


def test_buckets(server: OssServer) -> None:
    with connected(server, name="new-bucket") as bucket:
        bucket.create_bucket()
        bucket.put_object("a", b"x")
        assert server.objects.bucket_names() == ["bucket", "new-bucket"]
        with pytest.raises(oss2.exceptions.BucketNotEmpty):
            bucket.delete_bucket()
        bucket.delete_object("a")
        bucket.delete_bucket()
    assert server.objects.bucket_names() == ["bucket"]


# -- listing


def listing_by_hand(keys: list[str], prefix: str, delimiter: str) -> list[str]:
    names = set()
    for key in keys:
        if key.startswith(prefix):
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\0never")
            names.add(prefix + head + cut)
    return sorted(names)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
@pytest.mark.parametrize("delimiter", ["", "/", "b/"])
@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "none"])
def test_pages_put_together_are_the_listing(prefix: str, delimiter: str, limit: int) -> None:
    keys = ["a", "a/", "a/b", "a/b/c", "a/b/d/e", "a/é", "a-b", "a.b", "ab/x", "ab/y", "b", "é/中", "😀"]
    shelf = ObjectShelf()
    shelf.create_bucket("bucket")
    for key in keys:
        shelf.put("bucket", key, b"")
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = shelf.page("bucket", prefix, delimiter, after, limit)
        found = [key for key, _ in page.objects] + page.prefixes
        assert len(found) <= limit
        names += sorted(found)
        after = page.next_marker
    assert names == listing_by_hand(keys, prefix, delimiter)


@pytest.mark.parametrize("iterator", ["ObjectIterator", "ObjectIteratorV2"])
def test_listing_over_the_wire(server: OssServer, bucket: Any, iterator: str) -> None:
    keys = sorted([*NAMES, *(f"many/{i:03}" for i in range(25)), "many/sub/x"])
    for key in keys:
        server.objects.put("bucket", key, key.encode())
    found = list(getattr(oss2, iterator)(bucket, max_keys=10))
    assert [entry.key for entry in found] == keys
    assert [entry.size for entry in found] == [len(key.encode()) for key in keys]
    children = list(getattr(oss2, iterator)(bucket, prefix="many/", delimiter="/", max_keys=10))
    assert [(entry.key, entry.is_prefix()) for entry in children] == [
        *((f"many/{i:03}", False) for i in range(25)),
        ("many/sub/", True),
    ]
    assert {r.status for r in server.requests.all()} == {200}


def test_listing_with_a_start_and_wrong_arguments(server: OssServer, bucket: Any) -> None:
    for key in "abc":
        server.objects.put("bucket", key, b"")
    assert [found.key for found in bucket.list_objects_v2(start_after="a").object_list] == ["b", "c"]
    assert [found.key for found in bucket.list_objects(marker="b").object_list] == ["c"]
    for arguments in ({"max_keys": 1001}, {"max_keys": 0}, {"continuation_token": "?"}):
        with pytest.raises(oss2.exceptions.InvalidArgument):
            bucket.list_objects_v2(**arguments)


# -- faults and the log


def test_scripted_faults_hit_what_they_were_written_for(server: OssServer) -> None:
    server.objects.put("bucket", "a", b"12345")
    server.faults.add(Fault.error(503, "ServiceUnavailable", retry_after_s=7), times=2, method="GET", skip=1)
    with connected(server) as bucket:
        bucket.head_object("a")
        assert bucket.get_object("a").read() == b"12345"
        for _ in range(2):
            with pytest.raises(oss2.exceptions.ServerError) as caught:
                bucket.get_object("a")
            assert (caught.value.status, caught.value.code) == (503, "ServiceUnavailable")
            assert caught.value.headers["Retry-After"] == "7"
        assert bucket.get_object("a").read() == b"12345"
    assert len(server.faults) == 0


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Fault.truncated(100), 206, http.client.IncompleteRead),
        (Fault.reset_after(100), 206, ConnectionResetError),
        (Fault(lost=True), None, (ConnectionResetError, http.client.RemoteDisconnected)),
        (Fault(flip=True), 206, bytes(byte ^ 0xFF for byte in b"x" * 1000)),
        (Fault(ignore_range=True), 200, b"x" * 1000 + b"y" * 1000),
        (Fault(shift=500), 206, b"x" * 500 + b"y" * 500),
        (Fault.slow(0.01), 206, b"x" * 1000),
    ],
)
def test_fault_as_a_bare_client_sees_it(fault: Fault, status: int | None, body: Any) -> None:
    with OssServer(public_buckets=["open"]) as server:
        server.objects.put("open", "a", b"x" * 1000 + b"y" * 1000)
        server.faults.add(fault)
        expects_error = not isinstance(body, bytes)
        if expects_error:
            with pytest.raises(body):
                bare_get(server, "/open/a", Range="bytes=0-999")
        else:
            assert bare_get(server, "/open/a", Range="bytes=0-999")[:2] == (status, body)
        assert bare_get(server, "/open/a")[1] == b"x" * 1000 + b"y" * 1000, "the next request is fine"


def test_log_says_what_was_asked_and_sent(server: OssServer, bucket: Any) -> None:
    server.objects.put("bucket", "d/a b", bytes(1000))
    bucket.get_object("d/a b", byte_range=(0, 99)).read()
    bucket.head_object("d/a b")
    list(oss2.ObjectIteratorV2(bucket))
    with pytest.raises(oss2.exceptions.NoSuchKey):
        bucket.get_object("missing")
    got = [(r.method, r.key, r.range, r.status) for r in server.requests.all()]
    assert got == [
        ("GET", "d/a b", "bytes=0-99", 206),
        ("HEAD", "d/a b", "", 200),
        ("GET", "", "", 200),
        ("GET", "missing", "", 404),
    ]
    assert [(r.key, r.bytes_sent) for r in server.requests.data_gets() if r.status == 206] == [("d/a b", 100)]
    assert server.requests.count("HEAD") == 1


# -- keeping objects, and running alone


def test_directory_has_the_objects_again(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(10_000)
    shelf = ObjectShelf(tmp_path / "shelf")
    shelf.create_bucket("bucket")
    for name in [*NAMES, "x" * 1000]:
        shelf.put("bucket", name, data + name.encode(), headers={"Content-Type": "text/plain"})
    shelf.put("bucket", "empty", b"")
    shelf.put("bucket", "gone", b"x")
    shelf.delete("bucket", "gone")
    before = shelf.get("bucket", NAMES[0])
    shelf.put("bucket", NAMES[0], b"newer")
    assert bytes(before.data) == data + NAMES[0].encode(), "a body that is being served changed"
    again = ObjectShelf(tmp_path / "shelf")
    names = [key for key, _ in again.page("bucket", "", "", "", 1000).objects]
    assert names == sorted([*NAMES, "x" * 1000, "empty"])
    assert again.get("bucket", NAMES[1]) == shelf.get("bucket", NAMES[1])
    assert bytes(again.get("bucket", NAMES[0]).data) == b"newer"


def test_as_a_process_with_a_log_file(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    command = [
        sys.executable,
        "-m",
        "kara_worker.testing.oss_server",
        "--key-id",
        "me",
        "--key-secret",
        SECRET,
    ]
    command += ["--bucket", "data-bucket", "--log", str(log), "--directory", str(tmp_path / "objects")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        word, endpoint = process.stdout.readline().split()
        assert word == "ready"
        session = oss2.Session()
        bucket = oss2.Bucket(
            oss2.make_auth("me", SECRET, "v4"), endpoint, "data-bucket", session=session, region="cn-hangzhou"
        )
        bucket.put_object("a", b"12345")
        assert bucket.get_object("a", byte_range=(1, 2)).read() == b"23"
        session.session.close()
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
        process.stdout.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["method"], line["key"], line["range"], line["bytes_sent"]) for line in lines] == [
        ("PUT", "a", "", 0),
        ("GET", "a", "bytes=1-2", 2),
    ]
    assert ObjectShelf(tmp_path / "objects").bucket_names() == ["data-bucket"]


def test_close_does_not_wait_for_idle_connections_and_is_idempotent() -> None:
    server = OssServer(public_buckets=["open"])
    server.objects.put("open", "a", b"x")
    connection = http.client.HTTPConnection(server.host, timeout=10)
    connection.request("GET", "/open/a")
    assert connection.getresponse().read() == b"x"
    server.close()
    server.close()
    assert connection.sock.recv(1) == b"", "still open"
    connection.close()
