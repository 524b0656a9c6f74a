"""What OSS and S3 stores owe beyond the contract: request counts, faults, lies, pages, uploads.

Both talk to the test OSS server; to S3 clients it is a store without signatures that knows enough.
"""

from __future__ import annotations

import errno
import itertools
import logging
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from services import require_module
from stores import SECRET
from stores_oss import oss_options

from kara_cache.errors import StaleVersion, UnderStoreError
from kara_cache.ufs.object_store import SINGLE_PUT_BYTES, ObjectStore
from kara_cache.ufs.object_writer import PARALLEL_PARTS, PART_BYTES, part_bytes
from kara_cache.ufs.retry import MAX_DELAY_S, RetryRule
from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_server import OssServer

require_module("oss2")
require_module("boto3")
MIB = 1 << 20
CONNECTIONS = {"oss": 2, "s3": 1}  # OSS: one for reads, one for all else

pytestmark = [
    pytest.mark.oss,
    # oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]


@dataclass
class Bench:
    """A store on a server that does what it is told; retries do not wait but note their delays."""

    kind: str
    server: OssServer
    store: ObjectStore
    delays: list[float] = field(default_factory=list)

    def put(self, path: str, data: bytes) -> str:
        return self.server.objects.put("bucket", f"root/{path}", data).etag

    def requests(self) -> list[tuple[str, str]]:
        return [(request.method, request.range) for request in self.server.requests.all()]

    def stored(self, path: str) -> bytes:
        return bytes(self.server.objects.get("bucket", f"root/{path}").data)


@contextmanager
def bench(
    kind: str,
    *,
    retries: int = 4,
    check_if_match: bool = True,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> Iterator[Bench]:
    from kara_cache.ufs.oss import OssApi, OssOptions
    from kara_cache.ufs.s3 import S3Api, S3Options

    delays: list[float] = []
    rule = RetryRule(retries=retries, timeout_s=60, sleep=delays.append)
    if clock is not None:
        rule = RetryRule(retries=retries, timeout_s=60, sleep=delays.append, clock=clock)
    with ExitStack() as stack:
        server = stack.enter_context(
            OssServer(key_secret=SECRET, public_buckets=["bucket"], check_if_match=check_if_match)
        )
        api: Any
        if kind == "oss":
            given = {**oss_options(server), "use_ssl": False, **options}
            api = OssApi(server.endpoint, "bucket", OssOptions(**given))
        else:
            api = S3Api(
                "bucket",
                S3Options(anonymous=True, endpoint_url=server.endpoint, addressing_style="path", **options),
            )
        stack.callback(api.close)
        yield Bench(kind, server, ObjectStore(api, "root", rule), delays)


@pytest.fixture(params=["oss", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bucket(kind: str) -> Iterator[Bench]:
    with bench(kind) as found:
        yield found


@pytest.fixture
def oss() -> Iterator[Bench]:
    """For what is written: the S3 client would have to sign."""
    with bench("oss") as found:
        yield found


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read(store: ObjectStore, path: str, start: int, length: int, **more: Any) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: store.read_into(path, start, memoryview(buffer), **more)])


# -- what a call costs


def test_a_mebibyte_is_one_get_and_info_is_one_head(bucket: Bench) -> None:
    data = content(3 * MIB)
    bucket.put("a", data)
    info = bucket.store.info("a")
    assert bucket.requests() == [("HEAD", "")]
    bucket.server.requests.clear()
    assert read(bucket.store, "a", MIB, MIB, version=info.version) == data[MIB : 2 * MIB]
    assert bucket.requests() == [("GET", f"bytes={MIB}-{2 * MIB - 1}")]
    assert [request.bytes_sent for request in bucket.server.requests.data_gets()] == [MIB]


def test_read_of_nothing_asks_nothing(bucket: Bench) -> None:
    bucket.put("a", b"x")
    assert read(bucket.store, "a", 0, 0) == b""
    assert bucket.requests() == []


def test_one_connection_is_used_again_whatever_the_answers_were(bucket: Bench) -> None:
    bucket.put("a", content(MIB))
    for _ in range(5):
        version = bucket.store.info("a").version
        assert len(read(bucket.store, "a", 10, 1000, version=version)) == 1000
        assert len(list(bucket.store.list(""))) == 1
        for failing in (
            lambda: bucket.store.info("missing"),
            lambda: read(bucket.store, "missing", 0, 10),
            lambda: read(bucket.store, "a", 0, 10, version="other"),
        ):
            with pytest.raises((FileNotFoundError, StaleVersion)):
                failing()
    assert bucket.server.connections == CONNECTIONS[bucket.kind]


def test_connection_is_used_again_after_writing(oss: Bench) -> None:
    for i in range(5):
        oss.store.write(f"d/{i}", content(1000))
        oss.store.delete(f"d/{i}")
    assert oss.server.connections == CONNECTIONS["oss"]


# -- failures that pass


@pytest.mark.parametrize("verb", ["info", "list", "read"])
def test_storm_of_503_is_sat_out(bucket: Bench, verb: str) -> None:
    bucket.put("a", b"12345")
    bucket.server.faults.add(Fault.error(503, "ServiceUnavailable"), times=4)
    assert call(bucket.store, verb) == {"info": 5, "list": 1, "read": b"12345"}[verb]
    assert len(bucket.requests()) == 5
    assert len(bucket.delays) == 4
    assert all(
        0 <= delay <= ceiling for delay, ceiling in zip(bucket.delays, (0.05, 0.1, 0.2, 0.4), strict=True)
    )


@pytest.mark.parametrize("verb", ["info", "list", "read"])
def test_storm_that_outlasts_the_retries_is_an_error(bucket: Bench, verb: str) -> None:
    bucket.put("a", b"12345")
    bucket.server.faults.add(Fault.error(503, "SlowDown"), times=100)
    with pytest.raises(UnderStoreError, match=r"bucket/root.*5 attempts") as caught:
        call(bucket.store, verb)
    assert len(bucket.requests()) == 5
    assert "SlowDown" in str(caught.value) or verb == "info", "a HEAD has no body to say why"


def test_calls_together_retry_no_more_than_the_budget(bucket: Bench) -> None:
    bucket.put("a", b"12345")
    bucket.server.faults.add(Fault.error(500, "InternalError"), times=10_000)
    for _ in range(40):
        with pytest.raises(UnderStoreError):
            bucket.store.info("a")
    assert len(bucket.requests()) <= 40 + 20 + 4, "calls, the reserve, and what forty calls earn"


def call(store: ObjectStore, verb: str) -> Any:
    if verb == "info":
        return store.info("a").size
    if verb == "list":
        return len(list(store.list("")))
    return read(store, "a", 0, 5)


def test_retry_after_is_obeyed(bucket: Bench) -> None:
    bucket.put("a", b"12345")
    bucket.server.faults.add(Fault.error(503, "SlowDown", retry_after_s=2))
    assert read(bucket.store, "a", 0, 5) == b"12345"
    assert 2 <= bucket.delays[0] <= 2.05
    bucket.server.faults.add(Fault.error(503, "SlowDown", retry_after_s=int(MAX_DELAY_S) + 1))
    with pytest.raises(UnderStoreError, match="asked to wait 6 s"):
        read(bucket.store, "a", 0, 5)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(lost=True),
        Fault.truncated(0),
        Fault.truncated(700_000),
        Fault.reset_after(700_000),
        Fault.truncated(999_999),
        Fault.error(500, "InternalError"),
        Fault(shift=1000),
        Fault(drop_etag=True),
    ],
    ids=["lost", "no-body", "truncated", "reset", "one-byte-short", "500", "other-range", "no-etag"],
)
def test_broken_or_lying_answer_is_followed_by_another_request(bucket: Bench, fault: Fault) -> None:
    data = content(2_000_000)
    version = bucket.put("a", data)
    bucket.server.faults.add(fault, method="GET")
    assert read(bucket.store, "a", 500_000, 1_000_000, version=version) == data[500_000:1_500_000]
    assert len(bucket.requests()) == 2


def test_broken_read_goes_on_where_it_broke_off(bucket: Bench) -> None:
    data = content(2_000_000)
    version = bucket.put("a", data)
    bucket.server.faults.add(Fault.truncated(600_000))
    bucket.server.faults.add(Fault.truncated(300_000))
    seen: list[int] = []
    assert (
        read(bucket.store, "a", 100_000, 1_500_000, version=version, progress=seen.append)
        == data[100_000:1_600_000]
    )
    assert bucket.requests() == [
        ("GET", "bytes=100000-1599999"),
        ("GET", "bytes=700000-1599999"),
        ("GET", "bytes=1000000-1599999"),
    ]
    assert seen == sorted(set(seen))
    assert seen[-1] == 1_500_000


def test_silent_server_is_given_up_and_asked_again(kind: str) -> None:
    with bench(kind, read_timeout_s=0.2) as bucket:
        version = bucket.put("a", b"12345")
        bucket.server.faults.add(Fault.slow(60), method="GET")
        assert read(bucket.store, "a", 0, 5, version=version) == b"12345"
        assert len(bucket.delays) == 1


def test_nobody_listens(kind: str) -> None:
    with bench(kind, retries=1) as bucket:
        bucket.server.close()
        with pytest.raises(UnderStoreError, match="2 attempts"):
            bucket.store.info("a")


@pytest.mark.parametrize(
    ("fault", "start"),
    [
        (Fault.truncated(100), 0),
        (Fault.reset_after(100), 0),
        (Fault(shift=1), 0),
        (Fault(ignore_range=True), 10),
        (Fault(lost=True), 0),
        (Fault(drop_etag=True), 0),
    ],
    ids=["truncated", "reset", "other-range", "whole", "lost", "no-etag"],
)
def test_server_that_never_answers_right_is_an_error(bucket: Bench, fault: Fault, start: int) -> None:
    version = bucket.put("a", content(MIB))
    bucket.server.faults.add(fault, times=1000)
    with pytest.raises(UnderStoreError):
        read(bucket.store, "a", start, MIB - 1000, version=version)


def test_whole_object_instead_of_its_beginning_will_do(bucket: Bench) -> None:
    data = content(MIB)
    version = bucket.put("a", data)
    bucket.server.faults.add(Fault(ignore_range=True), times=2)
    for length in (1000, 2 * MIB):
        assert read(bucket.store, "a", 0, length, version=version) == data[:length]
    assert len(bucket.requests()) == 2
    assert bucket.store.info("a").size == MIB
    assert bucket.delays == [], "the connection with the rest of the first body was used again"


def test_time_runs_out_in_the_middle_of_a_body(kind: str) -> None:
    now = [0.0]
    with bench(kind, clock=lambda: now[0]) as bucket:
        bucket.put("a", content(8 * MIB))

        def stall(valid: int) -> None:
            now[0] += 61

        with pytest.raises(UnderStoreError, match="no time left after"):
            read(bucket.store, "a", 0, 8 * MIB, progress=stall)
        now[0] = 0.0
        assert len(read(bucket.store, "a", 0, 10)) == 10


# -- one version


@pytest.mark.parametrize("check_if_match", [True, False])
@pytest.mark.parametrize("pinned", [True, False])
def test_overwritten_between_two_answers(kind: str, pinned: bool, check_if_match: bool) -> None:
    with bench(kind, check_if_match=check_if_match) as bucket:
        version = bucket.put("a", content(2_000_000, seed=1))
        bucket.server.faults.add(Fault.truncated(1_000_000))

        def overwrite(valid: int) -> None:
            bucket.put("a", content(2_000_000, seed=2))

        with pytest.raises(StaleVersion):
            read(bucket.store, "a", 0, 2_000_000, version=version if pinned else None, progress=overwrite)


@pytest.mark.parametrize("check_if_match", [True, False])
@pytest.mark.parametrize("start", [0, 500, 990, 1000, 5000])
def test_other_version_of_the_same_size(kind: str, start: int, check_if_match: bool) -> None:
    with bench(kind, check_if_match=check_if_match) as bucket:
        version = bucket.put("a", content(1000, seed=1))
        bucket.put("a", content(1000, seed=2))
        with pytest.raises(StaleVersion):
            read(bucket.store, "a", start, 10, version=version)


# -- listing


@pytest.mark.parametrize("recursive", [False, True])
def test_three_thousand_objects_are_listed_a_page_at_a_time(bucket: Bench, recursive: bool) -> None:
    names = [f"d/{i:04}" for i in range(2990)]
    for name in [*names, *(f"d/sub{i}/x" for i in range(10)), "e"]:
        bucket.put(name, b"")
    entries = bucket.store.list("d", recursive=recursive)
    assert len(bucket.requests()) == 0
    head = list(itertools.islice(entries, 1000))
    assert len(bucket.requests()) == 1
    head += itertools.islice(entries, 1)
    assert len(bucket.requests()) == 2
    found = [entry.path for entry in (*head, *entries)]
    assert found == names + [f"d/sub{i}/x" if recursive else f"d/sub{i}" for i in range(10)]
    assert len(bucket.requests()) == 3


def test_markers_are_no_files_and_unnameable_keys_are_left_out(
    bucket: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("", "d/", "d/a", "d/empty/", "d//x", "d/../y", "d/./z"):
        bucket.put(key, b"")
    with caplog.at_level(logging.WARNING, logger="kara_cache"):
        assert [entry.path for entry in bucket.store.list("d")] == ["d/a", "d/empty"]
        assert [entry.path for entry in bucket.store.list("", recursive=True)] == ["d/a"]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "3 keys that no path can name are left out"
    ] * 2
    assert bucket.store.info("d/empty").is_dir
    assert list(bucket.store.list("d/empty")) == []


def test_empty_root_is_a_directory_and_a_missing_bucket_is_not_found(bucket: Bench) -> None:
    assert bucket.store.info("").is_dir
    assert list(bucket.store.list("")) == []
    bucket.server.objects.delete_bucket("bucket")
    for failing in (
        lambda: bucket.store.info(""),
        lambda: list(bucket.store.list("")),
        lambda: bucket.store.info("a"),
    ):
        with pytest.raises((FileNotFoundError, PermissionError)):
            failing()


# -- writing


def test_small_file_is_one_put(oss: Bench) -> None:
    info = oss.store.write("a", content(MIB))
    assert [method for method, _ in oss.requests()] == ["PUT", "HEAD"]
    assert info.version == oss.store.info("a").version
    assert oss.stored("a") == content(MIB)


def test_large_file_goes_up_in_parts(oss: Bench) -> None:
    data = content(SINGLE_PUT_BYTES + 1)
    info = oss.store.write("a", memoryview(data))
    assert info.version.endswith(f"-{SINGLE_PUT_BYTES // PART_BYTES + 1}")
    assert oss.stored("a") == data
    assert oss.server.objects.uploads("bucket") == {}


def test_parts_are_sent_while_the_file_is_written_and_few_at_a_time(oss: Bench) -> None:
    with oss.store.open_writer("a") as writer:
        for i in range(3):
            writer.write(content(PART_BYTES, seed=i))
        writer.write(b"end")
        upload = next(iter(oss.server.objects.uploads("bucket").values()))
        assert len(upload.parts) <= 3
        info = writer.commit()
    assert info.size == 3 * PART_BYTES + 3
    assert oss.stored("a") == b"".join(content(PART_BYTES, seed=i) for i in range(3)) + b"end"
    assert oss.server.connections <= PARALLEL_PARTS + 1


def test_part_that_fails_once_is_sent_again(oss: Bench) -> None:
    data = content(2 * PART_BYTES + 1)
    for fault in (
        Fault.error(503, "ServiceUnavailable"),
        Fault(lost=True),
        Fault.error(400, "InvalidDigest"),
    ):
        oss.server.faults.add(fault, method="PUT")
    with oss.store.open_writer("a") as writer:
        writer.write(data)
    assert oss.stored("a") == data
    assert oss.server.objects.uploads("bucket") == {}


def test_part_that_keeps_failing_aborts_the_upload(oss: Bench) -> None:
    oss.put("a", b"old")
    oss.server.faults.add(Fault.error(403, "AccessDenied"), times=1000, method="PUT")
    with pytest.raises(PermissionError), oss.store.open_writer("a") as writer:
        writer.write(content(2 * PART_BYTES))
    assert oss.server.objects.uploads("bucket") == {}
    assert oss.stored("a") == b"old"


def test_upload_that_cannot_be_completed_is_aborted(oss: Bench) -> None:
    writer = oss.store.open_writer("a")
    writer.write(content(PART_BYTES + 1))
    oss.server.faults.add(Fault.error(500, "InternalError"), times=5, method="POST")
    with pytest.raises(UnderStoreError, match="5 attempts"):
        writer.commit()
    assert oss.server.objects.uploads("bucket") == {}
    with pytest.raises(FileNotFoundError):
        oss.store.info("a")


def test_upload_that_cannot_even_be_aborted_says_so(oss: Bench, caplog: pytest.LogCaptureFixture) -> None:
    writer = oss.store.open_writer("a")
    writer.write(content(PART_BYTES))
    oss.server.faults.add(Fault.error(403, "AccessDenied"), method="DELETE")
    with caplog.at_level(logging.WARNING, logger="kara_cache"):
        writer.abort()
    assert "parts of upload" in caplog.text
    assert "AccessDenied" in caplog.text


def test_part_sizes_grow_so_that_ten_thousand_hold_terabytes() -> None:
    sizes = [part_bytes(number) for number in range(1, 10_001)]
    assert sizes[0] == PART_BYTES
    assert sizes == sorted(sizes)
    assert all(5 * MIB <= size <= 5 << 30 for size in sizes), "the limits of S3 for a part"
    assert sum(sizes) > 5 << 40


def test_delete_looks_first(oss: Bench) -> None:
    oss.put("a", b"x")
    oss.store.delete("a")
    assert [method for method, _ in oss.requests()] == ["HEAD", "DELETE"]
    with pytest.raises(FileNotFoundError):
        oss.store.delete("a")
    assert oss.server.requests.count("DELETE") == 1


def test_delete_of_an_empty_folder_takes_its_marker_only(oss: Bench) -> None:
    oss.put("d/", b"")
    oss.put("d/a", b"x")
    with pytest.raises(OSError) as caught:
        oss.store.delete("d")
    assert caught.value.errno == errno.ENOTEMPTY
    oss.store.delete("d/a")
    oss.store.delete("d")
    with pytest.raises(FileNotFoundError):
        oss.store.info("d")
    with pytest.raises(PermissionError):
        oss.store.delete("")


# -- errors


def test_refusal_names_code_and_request_and_no_secret(bucket: Bench) -> None:
    bucket.put("a", b"x")
    bucket.server.faults.add(Fault.error(403, "InvalidObjectState"), times=1)
    with pytest.raises(
        PermissionError, match=r"InvalidObjectState: scripted fault \(request [0-9a-f]*\)"
    ) as caught:
        read(bucket.store, "a", 0, 1)
    assert caught.value.errno == errno.EACCES
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert len(bucket.requests()) == 1, "what is refused is not asked for again"
