"""What killed writers leave in a store, and what becomes of it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from services import require_module
from stores import SECRET
from stores_oss import oss_options

from kara_cache.ufs.local import LocalStore
from kara_cache.ufs.object_store import ObjectStore
from kara_cache.ufs.object_writer import PART_BYTES
from kara_cache.ufs.resumable import ABANDONED_S, ResumableStore, UploadGone
from kara_cache.ufs.retry import RetryRule
from kara_worker.testing.oss_server import OssServer

require_module("oss2")
require_module("boto3")
# oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
WEEKS_AGO_S = 3 * ABANDONED_S


class Clock:
    def __init__(self) -> None:
        self.now_s = time.time()  # signatures are refused when they are old

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[OssServer]:
    with OssServer(key_secret=SECRET, public_buckets=["bucket"], clock=clock) as running:
        yield running


@pytest.fixture(params=["oss", "s3"])
def store(request: pytest.FixtureRequest, server: OssServer) -> Iterator[ObjectStore]:
    """For what is read: the S3 client would have to sign what it changes."""
    from kara_cache.ufs.oss import OssApi, OssOptions
    from kara_cache.ufs.s3 import S3Api, S3Options

    api: Any
    if request.param == "oss":
        api = OssApi(server.endpoint, "bucket", OssOptions(**{**oss_options(server), "use_ssl": False}))
    else:
        options = S3Options(anonymous=True, endpoint_url=server.endpoint, addressing_style="path")
        api = S3Api("bucket", options)
    with closing(api):
        yield ObjectStore(api, "root", RetryRule(retries=0, timeout_s=60))


@pytest.fixture
def oss(server: OssServer) -> Iterator[ObjectStore]:
    from kara_cache.ufs.oss import OssApi, OssOptions

    with closing(
        OssApi(server.endpoint, "bucket", OssOptions(**{**oss_options(server), "use_ssl": False}))
    ) as api:
        yield ObjectStore(api, "root", RetryRule(retries=0, timeout_s=60))


def test_more_uploads_and_parts_than_one_answer_has(store: ObjectStore, server: OssServer) -> None:
    begun = [("root/d/ä b", server.objects.begin_upload("bucket", "root/d/ä b", {})) for _ in range(1200)]
    begun += [("root/e", server.objects.begin_upload("bucket", "root/e", {}))]
    for number in range(1, 1203):
        server.objects.put_part(begun[7][1], begun[7][0], number, b"%d" % number)

    found, marker = [], None
    while True:
        page = store._api.uploads("root/d/", marker=marker)
        found += [(upload.key, upload.id) for upload in page.uploads]
        marker = page.next_marker
        if marker is None:
            break
    assert sorted(found) == sorted(begun[:1200])

    parts, after = [], 0
    while True:
        some = store._api.parts(*begun[7], marker=after)
        parts += [(part.number, part.size) for part in some.parts]
        after = some.next_marker
        if not after:
            break
    assert parts == [(number, len(b"%d" % number)) for number in range(1, 1203)]
    with pytest.raises(UploadGone):
        store._api.parts("root/e", begun[7][1], marker=0)


def test_uploads_of_others_are_given_up_after_a_week(
    oss: ObjectStore, server: OssServer, clock: Clock
) -> None:
    def begin(path: str) -> str:
        return server.objects.begin_upload("bucket", f"root/{path}", {})

    now_s = clock.now_s
    clock.now_s = now_s - WEEKS_AGO_S
    begin("d/forgotten"), begin("elsewhere/old")
    clock.now_s = now_s
    live, complete = begin("d/live"), begin("d/complete")

    unfinished = oss.unfinished("d")
    assert unfinished.clear([]) == 0, "nothing is asked for"
    assert server.requests.all() == []
    assert unfinished.clear(["d/complete"]) == 2
    left = server.objects.uploads("bucket")
    assert {upload.key for upload in left.values()} == {"root/d/live", "root/elsewhere/old"}
    assert live in left
    assert complete not in left


def test_a_suspended_writer_is_gone_on_with(oss: ObjectStore, server: OssServer) -> None:
    data = os.urandom(PART_BYTES) + b"end"
    writer = oss.unfinished("d").open_writer("d/a")

    def fail_half_way() -> None:
        with writer:
            writer.write(data[:PART_BYTES])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    writer.suspend()  # is idempotent
    with pytest.raises(ValueError, match="closed"):
        writer.write(b"more")
    server.requests.clear()
    with oss.unfinished("d").open_writer("d/a") as writer:
        writer.write(data)
    assert sum("partNumber" in request.query for request in server.requests.all()) == 1
    assert bytes(server.objects.get("bucket", "root/d/a").data) == data
    assert server.objects.uploads("bucket") == {}


# -- file://


def left_in(directory: Path) -> list[Path]:
    return sorted(directory.glob(".kara-tmp-*"))


def test_a_local_writer_goes_on_and_cuts_off_the_rest(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert isinstance(store, ResumableStore)
    for data in (b"0123456789", b"01x3"):
        writer = store.unfinished("d").open_writer("d/a")
        writer.write(data)
        writer.suspend()
    (left,) = left_in(tmp_path / "d")
    assert left.read_bytes() == b"01x3456789"
    assert [info.path for info in store.list("d")] == []
    with store.unfinished("d").open_writer("d/a") as writer:
        writer.write(b"01")
        writer.write(b"23")
    assert (tmp_path / "d" / "a").read_bytes() == b"0123"
    assert left_in(tmp_path / "d") == []


def test_two_local_writers_of_one_file_do_not_share(tmp_path: Path) -> None:
    unfinished = LocalStore(str(tmp_path)).unfinished("")
    with unfinished.open_writer("a") as first, unfinished.open_writer("a") as second:
        first.write(b"first")
        second.write(b"second")
        assert len(left_in(tmp_path)) == 2
        assert unfinished.clear([]) == 0, "both live"
        first.commit()
    assert (tmp_path / "a").read_bytes() == b"second"
    assert left_in(tmp_path) == []


def test_what_nobody_goes_on_with_is_cleared(tmp_path: Path) -> None:
    unfinished = LocalStore(str(tmp_path)).unfinished("")
    writer = unfinished.open_writer("a")
    writer.write(b"x")
    writer.suspend()
    assert unfinished.clear([]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "second name"])
def test_what_is_in_the_way_is_not_written_to(tmp_path: Path, kind: str) -> None:
    store = LocalStore(str(tmp_path))
    writer = store.unfinished("").open_writer("a")
    (left,) = left_in(tmp_path)
    writer.abort()
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    if kind == "fifo":
        os.mkfifo(left)
    elif kind == "link":
        left.symlink_to(other)
    elif kind == "directory":
        left.mkdir()
    else:
        left.hardlink_to(other)
    with store.unfinished("").open_writer("a") as writer:
        writer.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert other.read_bytes() == b"precious"


def test_a_file_that_is_committed_before_it_is_locked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    first = store.unfinished("").open_writer("a")
    first.write(b"first")
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.commit()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = store.unfinished("").open_writer("a")
    second.write(b"SECOND")
    assert (tmp_path / "a").read_bytes() == b"first"
    second.commit()
    assert (tmp_path / "a").read_bytes() == b"SECOND"
