"""Directories saved to and loaded from every kind of place, also ones that are damaged or lie."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import services

from kara_cache.errors import FormatError, UnderStoreError
from kara_cache.storage import objects
from kara_cache.storage.location import Location, open_location
from kara_cache.storage.objects import load as load_module
from kara_cache.storage.objects import partial_blob
from kara_cache.storage.objects.blob_store import BlobStore
from kara_cache.ufs.base import FileInfo
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer, Rudeness

pytestmark = [
    pytest.mark.leaves_running("connections and read threads of the module's cluster and servers"),
    # oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
RANDOM = random.Random(3)
LARGE = RANDOM.randbytes((16 << 20) + 77)  # three parts
FILES = {
    "model.bin": LARGE,
    "copy/of/model.bin": LARGE,
    "notes.txt": b"notes\n",
    "empty": b"",
    "名字 with spaces/ü.txt": "内容".encode(),
    **{f"shards/{i:03}.bin": RANDOM.randbytes(1000 + i) for i in range(9)},
}


@dataclass
class Place:
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    oss: OssServer | None = None

    def open(self) -> Location:
        return open_location(self.url, **self.options)


@pytest.fixture(scope="module")
def oss() -> Iterator[OssServer]:
    services.require_module("oss2")
    with OssServer(buckets=["bucket"]) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("objects")
    (directory / "files").mkdir()
    with LocalCluster(2, mounts={"data": f"file://{directory}/files"}, directory=directory) as running:
        yield running


@pytest.fixture
def oss_place(oss: OssServer, request: pytest.FixtureRequest) -> Iterator[Place]:
    prefix = hashlib.md5(request.node.nodeid.encode()).hexdigest()
    credentials = oss.credentials
    options = {"app_key": credentials.key_id, "app_secret": credentials.key_secret, "use_ssl": False}
    yield Place(f"oss://{oss.host}/bucket/{prefix}", options, oss)
    oss.faults.clear()
    oss.requests.clear()


@pytest.fixture(params=["file", "oss", "s3", "kara"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place(f"file://{tmp_path}/db")
    if request.param == "oss":
        return request.getfixturevalue("oss_place")
    if request.param == "s3":
        options = {"endpoint_url": request.getfixturevalue("moto"), "app_key": "k", "app_secret": "s"}
        options |= {"region": "us-east-1", "addressing_style": "path"}
        return Place(f"s3://bucket/{tmp_path.name}", options)
    running: LocalCluster = request.getfixturevalue("cluster")
    url = f"kara::file://{running.directory}/files/{tmp_path.name}"
    return Place(url, {"kara": running.client_options})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "source" / "notes.txt").chmod(0o751)
    os.utime(tmp_path / "source" / "notes.txt", ns=(10**18, 10**18 + 7))
    (tmp_path / "source" / "nothing" / "here").mkdir(parents=True)
    return tmp_path / "source"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Location]:
    """A place of files, which tests can damage."""
    with closing(open_location(f"file://{tmp_path}/db")) as location:
        yield location


Save = Callable[..., str]


def save(location: Location, path: Path, version: object = None, **options: Any) -> str:
    return objects.save_directory(location, "ns", "dir/key", path, version, progress_bar=False, **options)


def load(location: Location, path: Path, version: object = "latest", **options: Any) -> str:
    return objects.load_directory(location, "ns", "dir/key", path, version, progress_bar=False, **options)


def content(directory: Path) -> dict[str, bytes | None]:
    """Every file, and every directory as None."""
    return {
        path.relative_to(directory).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }


def key_directory(location: Location) -> Path:
    assert location.local is not None
    return location.local / "obj" / "ns" / "dir" / "key"


def blob_path(location: Location, data: bytes) -> Path:
    name = f"{hashlib.md5(data).hexdigest()}_{hashlib.sha1(data).hexdigest()}"
    return key_directory(location) / "data" / name


# -- every kind of place


def test_round_trip(place: Place, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for i in range(60):  # so many that the store's blobs are listed
        (source / "shards" / f"more-{i}").write_bytes(b"%d" % i)
    with closing(place.open()) as location:
        assert save(location, source) == "0"
        assert load(location, target) == "0"
        assert content(target) == content(source)
        assert {name: stamps(target / name) for name in FILES} == {
            name: stamps(source / name) for name in FILES
        }
        names = {info.path.rpartition("/")[2] for info in blobs_of(location)}
        assert len(names) == len(set(FILES.values())) + 60

        (source / "notes.txt").write_bytes(b"other notes\n")
        (source / "empty").unlink()
        assert save(location, source, "second") == "second"
        assert len(blobs_of(location)) == len(names) + 1
        assert objects.list_versions(location, "ns", "dir/key").names == ("0", "second")
        assert load(location, target, "0") == "0"
        assert (target / "notes.txt").read_bytes() == b"notes\n"
        assert load(location, target, delete=True) == "second"
        assert content(target) == content(source)
        verdict = objects.verify_directory(location, "ns", "dir/key", progress_bar=False)
        assert (verdict.version, verdict.files, verdict.problems) == ("second", len(FILES) + 59, ())
        sizes = {file.name: file.blob.size for file in objects.list_files(location, "ns", "dir/key", 0).files}
        assert sizes.items() >= {name: len(data) for name, data in FILES.items()}.items()


def stamps(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mode & 0o7777, status.st_mtime_ns


def blobs_of(location: Location) -> list[FileInfo]:
    return [*location.store.list(location.path("obj", "ns", "dir/key", "data"))]


def test_over_http(source: Path, tmp_path: Path, local: Location) -> None:
    save(local, source)
    with RudeHttpServer() as server:
        serve(server, local)
        with closing(open_location(f"{server.url}/prefix")) as location:
            assert load(location, tmp_path / "target") == "0"
            assert content(tmp_path / "target") == content(source)
            with pytest.raises(PermissionError, match="read-only"):
                save(location, source)
            with pytest.raises(objects.NoSuchVersion, match="`9` not found"):
                load(location, tmp_path / "target", 9)


def serve(server: RudeHttpServer, local: Location) -> None:
    assert local.local is not None
    for path in local.local.rglob("*"):
        if path.is_file():
            server.put(f"prefix/{path.relative_to(local.local).as_posix()}", path.read_bytes())


def test_the_store_is_asked_for_what_is_missing_only(oss_place: Place, source: Path, tmp_path: Path) -> None:
    assert oss_place.oss is not None
    requests = oss_place.oss.requests
    with closing(oss_place.open()) as location:
        save(location, source)
        requests.clear()
        (source / "new").write_bytes(b"new")
        save(location, source)
        assert [entry.key.rpartition("/")[0][-4:] for entry in requests.all() if entry.method == "PUT"] == [
            "data",
            "vers",
            "/key",
        ]
        load(location, tmp_path / "target")
        requests.clear()
        (tmp_path / "target" / "notes.txt").write_bytes(b"notez\n")
        load(location, tmp_path / "target")
        assert sum("/data/" in entry.key for entry in requests.data_gets()) == 1
        assert content(tmp_path / "target") == content(source)


# -- versions


def test_versions(local: Location, source: Path, tmp_path: Path) -> None:
    with pytest.raises(objects.NoSuchVersion, match="Dataset not exists"):
        load(local, tmp_path / "target")
    with pytest.raises(ValueError, match="Dataset not exists"):  # as the published package
        save(local, source, "latest")
    assert [save(local, source, version) for version in (0, "2", None, None, False)] == [
        "0",
        "2",
        "1",
        "3",
        "False",
    ]
    assert objects.list_versions(local, "ns", "dir/key").latest == "False"
    (source / "more").write_bytes(b"more")
    assert save(local, source, "latest") == "False"
    assert save(local, source, "a/b") == "a/b"
    (source / "more").write_bytes(b"yet more")
    assert save(local, source, "2") == "2"
    assert load(local, tmp_path / "target") == "2"
    assert load(local, tmp_path / "target", "a/b") == "a/b"
    assert (tmp_path / "target" / "more").read_bytes() == b"more"
    with pytest.raises(ValueError, match="`7` not found in storage `dir/key`"):
        load(local, tmp_path / "target", 7)
    for wrong in ("", "..", "a/../../x", "/x", "a\0"):
        with pytest.raises(ValueError, match=r"version|path"):
            save(local, source, wrong)


def test_nothing_is_published_when_a_save_fails(local: Location, source: Path) -> None:
    save(local, source)
    before = (key_directory(local) / "meta.json").read_bytes()
    (source / "broken").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="leads nowhere"):
        save(local, source)
    with pytest.raises(NotADirectoryError):
        save(local, source / "notes.txt")
    assert (key_directory(local) / "meta.json").read_bytes() == before
    assert [path.name for path in (key_directory(local) / "vers").iterdir()] == ["0.json"]


def test_a_version_without_its_file(local: Location, source: Path, tmp_path: Path) -> None:
    """What the published package leaves when it is killed while it saves."""
    save(local, source)
    (key_directory(local) / "meta.json").write_text('{"latest": "1", "versions": ["0", "1"], "api": 2}')
    with pytest.raises(FormatError, match="version 1: its file is missing, the save was interrupted"):
        load(local, tmp_path / "target")
    assert load(local, tmp_path / "target", "0") == "0"
    assert save(local, source, "latest") == "1"
    assert load(local, tmp_path / "target") == "1"


def test_saves_at_the_same_time_get_different_numbers(local: Location, source: Path) -> None:
    barrier, names = threading.Barrier(4, timeout=60), []

    def run() -> None:
        barrier.wait()
        names.append(save(local, source, threads=2))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(names) == ["0", "1", "2", "3"]
    assert sorted(objects.list_versions(local, "ns", "dir/key").names) == sorted(names)


def test_a_file_that_changes_while_it_is_saved(
    local: Location, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = objects.upload_blobs
    for name in ("notes.txt", "model.bin"):
        data = (source / name).read_bytes()

        def change(*arguments: Any, name: str = name, data: bytes = data, **options: Any) -> int:
            (source / name).write_bytes(data[::-1] + b"x")
            return upload(*arguments, **options)

        (source / "copy" / "of" / "model.bin").unlink(missing_ok=True)
        monkeypatch.setattr(objects, "upload_blobs", change)
        with pytest.raises(OSError, match="changed while it was saved") as caught:
            save(local, source)
        assert caught.value.filename == str(source / name)
        (source / name).write_bytes(data)
    assert not (key_directory(local) / "meta.json").exists()
    monkeypatch.undo()
    assert save(local, source) == "0"
    assert objects.verify_directory(local, "ns", "dir/key", progress_bar=False).problems == ()


# -- what is in the target


def test_unrelated_files_stay_unless_asked(local: Location, source: Path, tmp_path: Path) -> None:
    save(local, source)
    target = tmp_path / "target"
    (target / "mine").mkdir(parents=True)
    (target / "mine" / "file").write_bytes(b"mine")
    load(local, target)
    assert content(target) == {**content(source), "mine": None, "mine/file": b"mine"}
    load(local, target, delete=True)
    assert content(target) == content(source)


def test_an_empty_version(local: Location, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    save(local, tmp_path / "nothing")
    load(local, tmp_path / "target" / "deep")
    assert content(tmp_path / "target") == {"deep": None}


HOSTILE = {
    "parent": {"path": ["..", "escaped"]},
    "absolute": {"path": ["/tmp/escaped"]},
    "NUL": {"path": ["a\0b"]},
    "backslash": {"path": ["..\\escaped"]},
    "blob elsewhere": {"file": "../../../../../escaped"},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_version_files(local: Location, source: Path, tmp_path: Path, case: str) -> None:
    save(local, source)
    version = key_directory(local) / "vers" / "0.json"
    entries = json.loads(version.read_bytes())
    entries[-1].update(HOSTILE[case])
    version.write_text(json.dumps(entries))
    before = content(tmp_path)
    with pytest.raises(FormatError, match="version 0"):
        load(local, tmp_path / "target")
    assert content(tmp_path) == before


def test_links_in_the_target_lead_nowhere(local: Location, source: Path, tmp_path: Path) -> None:
    save(local, source)
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "000.bin").write_bytes(b"not ours")
    (target / "shards").symlink_to(outside)
    before = content(tmp_path)
    for delete in (False, True):
        with pytest.raises(PermissionError, match="symbolic link"):
            load(local, target, delete=delete)
    assert content(tmp_path) == before


# -- damage


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "short":
        path.write_bytes(data[:-1])
    elif kind == "long":
        path.write_bytes(data + b"x")
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("kind", ["missing", "short", "flipped"])
@pytest.mark.parametrize("name", ["notes.txt", "model.bin"])
def test_a_damaged_blob(local: Location, source: Path, tmp_path: Path, kind: str, name: str) -> None:
    save(local, source)
    blob = blob_path(local, FILES[name])
    damage(blob, kind)
    target = tmp_path / "target"
    target.mkdir()
    (target / name).write_bytes(b"as it was")
    with pytest.raises(FormatError, match=blob.name):
        load(local, target)
    assert (target / name).read_bytes() == b"as it was"
    (problem,) = objects.verify_directory(local, "ns", "dir/key", progress_bar=False).problems
    assert problem.blob == blob.name
    assert name in problem.files

    save(local, source, verify=kind == "flipped")  # sizes are looked at in any case
    assert load(local, target) == "1"
    assert content(target) == content(source)


def test_a_blob_that_is_too_long(local: Location, source: Path, tmp_path: Path) -> None:
    """Its beginning is right, so that is what a load takes; verify says it, and a save replaces it."""
    save(local, source)
    blob = blob_path(local, FILES["notes.txt"])
    damage(blob, "long")
    load(local, tmp_path / "target")
    assert content(tmp_path / "target") == content(source)
    (problem,) = objects.verify_directory(local, "ns", "dir/key", progress_bar=False).problems
    assert (problem.blob, problem.what) == (blob.name, "7 bytes, expected 6")
    save(local, source)
    assert blob.read_bytes() == FILES["notes.txt"]


LIES = {
    "flipped": (Fault(flip=True), FormatError),
    "shifted": (Fault(shift=1), UnderStoreError),
    "other status": (Fault.error(403, "AccessDenied"), PermissionError),
}


@pytest.mark.parametrize("case", LIES)
@pytest.mark.parametrize("name", ["notes.txt", "model.bin"])
def test_a_store_that_lies(
    oss_place: Place, source: Path, tmp_path: Path, case: str, name: str, local: Location
) -> None:
    assert oss_place.oss is not None
    fault, error = LIES[case]
    blob = blob_path(local, FILES[name]).name
    with closing(oss_place.open()) as location:
        save(location, source)
        key = f"{oss_place.url.rpartition('/')[2]}/obj/ns/dir/key/data/{blob}"
        oss_place.oss.faults.add(fault, times=50, method="GET", key=key)
        with pytest.raises(error):
            load(location, tmp_path / "target")
        assert not (tmp_path / "target" / name).exists()
        oss_place.oss.faults.clear()
        load(location, tmp_path / "target")
    assert content(tmp_path / "target") == content(source)


def test_a_store_that_stumbles(local: Location, source: Path, tmp_path: Path) -> None:
    save(local, source)
    with RudeHttpServer() as server:
        serve(server, local)
        blob = f"prefix/obj/ns/dir/key/data/{blob_path(local, LARGE).name}"
        for rudeness in (
            Rudeness(reset_after=5000),
            Rudeness(status=503),
            Rudeness(short_by=9),
            Rudeness(drop=True),
        ):
            server.misbehave(rudeness, path=blob, times=1)
        with closing(open_location(f"{server.url}/prefix")) as location:
            load(location, tmp_path / "target")
    assert content(tmp_path / "target") == content(source)


# -- going on after an interruption


def test_a_load_goes_on_in_the_middle_of_a_file(
    oss_place: Place, source: Path, tmp_path: Path, local: Location
) -> None:
    assert oss_place.oss is not None
    with closing(oss_place.open()) as location:
        save(location, source)
        key = f"{oss_place.url.rpartition('/')[2]}/obj/ns/dir/key/data/{blob_path(local, LARGE).name}"
        oss_place.oss.faults.add(Fault.error(403, "AccessDenied"), skip=2, method="GET", key=key)
        with pytest.raises(PermissionError):
            load(location, tmp_path / "target", threads=1)
        assert not (tmp_path / "target" / "model.bin").exists()
        oss_place.oss.requests.clear()
        load(location, tmp_path / "target", threads=1)
        asked = [entry.range for entry in oss_place.oss.requests.data_gets() if entry.key == key]
        assert asked == [f"bytes={2 * partial_blob.PART_BYTES}-{len(LARGE) - 1}"]
    assert content(tmp_path / "target") == content(source)


def test_parts_that_are_wrong_are_fetched_again(local: Location, source: Path, tmp_path: Path) -> None:
    """A machine that lost power may have kept the journal and not the data."""
    save(local, source)
    target = tmp_path / "target"
    target.mkdir()
    blob = objects.Blob(hashlib.md5(LARGE).hexdigest(), hashlib.sha1(LARGE).hexdigest(), len(LARGE))
    with load_module.WorkDirectory(str(target)) as work:
        arriving = partial_blob.PartialBlob(work, blob)
        for index in arriving.missing():
            start, stop = arriving.span(index)
            arriving.put(index, memoryview(bytes(stop - start)))
        arriving.close()
    load(local, target)
    assert content(target) == content(source)


def test_another_load_is_refused(local: Location, source: Path, tmp_path: Path) -> None:
    save(local, source)
    target = tmp_path / "target"
    target.mkdir()
    with load_module.WorkDirectory(str(target)):
        with pytest.raises(BlockingIOError, match="another load"):
            load(local, target)
    load(local, target)
    assert content(target) == content(source)


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    services.require_root()
    place = tmp_path / "disk"
    place.mkdir()
    with ExitStack() as mounted:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", place], check=False, timeout=60
        )
        if done.returncode:
            pytest.skip("no tmpfs can be mounted here")
        mounted.callback(subprocess.run, ["umount", "-l", place], check=True, timeout=60)
        yield place


@pytest.mark.fault
def test_a_disk_that_is_too_small(local: Location, source: Path, small_disk: Path) -> None:
    save(local, source)
    with pytest.raises(OSError, match="bytes more") as caught:
        load(local, small_disk / "target")
    assert caught.value.errno == errno.ENOSPC
    shutil.rmtree(small_disk / "target")
    (source / "copy" / "of" / "model.bin").unlink()
    save(local, source)
    load(local, small_disk / "target")
    # the same again in place of what is there needs no more than there is
    (source / "model.bin").write_bytes(LARGE[::-1][: 8 << 20])
    save(local, source)
    load(local, small_disk / "target", delete=True)
    assert content(small_disk / "target") == content(source)


@pytest.mark.fault
def test_a_disk_that_fills_up(
    local: Location, source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(local, source)
    monkeypatch.setattr(load_module._Load, "_check_space", lambda *_: None)  # others write at the same time
    with pytest.raises(OSError) as caught:
        load(local, small_disk / "target")
    assert caught.value.errno == errno.ENOSPC
    assert str(small_disk / "target") in str(caught.value.filename)
    found = {name: data for name, data in content(small_disk / "target").items() if ".kara-load" not in name}
    assert {name: data for name, data in found.items() if data is not None}.items() <= FILES.items()
    subprocess.run(["mount", "-o", "remount,size=90m", small_disk], check=True, timeout=60)
    load(local, small_disk / "target")
    assert content(small_disk / "target") == content(source)


# -- bars


def test_bars(local: Location, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    objects.save_directory(local, "ns", "key", source)
    objects.load_directory(local, "ns", "key", tmp_path / "target")
    out, words = capfd.readouterr()
    assert out == ""
    for label in ("Hashing", "Uploading", "Downloading"):
        assert f"{label}: 100%" in words
    objects.load_directory(local, "ns", "key", tmp_path / "target", progress_bar=False)
    assert capfd.readouterr() == ("", "")


# -- workers that die


def test_a_worker_that_dies_during_a_load(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "db").mkdir()
    with LocalCluster(2, mounts={"data": f"file://{tmp_path}/db"}, directory=tmp_path / "cluster") as cluster:
        with closing(open_location(f"kara::file://{tmp_path}/db", kara=cluster.client_options)) as location:
            save(location, source)
            reads = itertools.count(1)
            read_into = BlobStore.read_into

            def failing(*arguments: Any) -> None:
                if next(reads) == 4:
                    cluster.workers[0].kill()
                read_into(*arguments)

            monkeypatch.setattr(BlobStore, "read_into", failing)
            load(location, tmp_path / "target")
        assert not cluster.workers[0].alive
    assert content(tmp_path / "target") == content(source)
