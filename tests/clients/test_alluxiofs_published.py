"""The published `alluxiofs`, as it is, against three workers. It has no file system to fall back to.

1.0.17 finds workers in a real etcd; 1.1.17 has a list of them, and reads from port 29998 of whichever
host `/v1/node` names, so every worker has an address of its own on this host. What a version cannot do
against any server is in docs/alluxio.md, and here in KNOWN.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import services
from alluxiofs_session import AlluxiofsSession, CallFailed

from kara_cache.filesystem import KaraFileSystem
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.etcd_server import EtcdServer
from kara_worker.testing.oss_server import OssServer

pytestmark = [pytest.mark.clients, pytest.mark.etcd, pytest.mark.oss]

VERSIONS = ("1.0.17", "1.1.17")
MIB = 1 << 20
SIZES = {
    "empty": 0,
    "one": 1,
    "plain.bin": 100_000,
    "page": MIB,
    "pages and a bit": 5 * MIB + 1,
    "space name": 10_000,
    "a&b=c&offset=1": 10_000,
    "a#b": 10_000,
    "a+b": 10_000,
    "100%": 10_000,
    "a%20b": 10_000,
    "中文 文件.txt": 10_000,
    "dir/inner": 2000,
}
# 1.0.17 does not send what follows a "#", so a range of such a file cannot be asked for (and no new one made)
KNOWN = {("1.0.17", "range", "a#b")}
DATA_PORT = 29998  # 1.1.17 knows no other


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def digest(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": sha256(data).hexdigest()}


@dataclass(frozen=True)
class Place:
    cluster: LocalCluster
    etcd: EtcdServer
    disk: Path
    urls: dict[str, str]  # "disk" and "oss" to the URL of the mount
    hosts: dict[str, str]  # id of a worker to its address

    def options(self, version: str) -> dict[str, Any]:
        if version == "1.0.17":
            return {
                "etcd_hosts": self.etcd.host,
                "etcd_port": self.etcd.port,
                "cluster_name": self.cluster.cluster_name,
                "etcd_refresh_workers_interval": 1,
            }
        hosts = [f"{self.hosts[worker.id]}:{dict_port(worker)}" for worker in self.cluster.workers]
        return {"load_balance_domain": None, "worker_hosts": ",".join(hosts)}


def dict_port(worker: WorkerProcess) -> int:
    return int(worker.ready["alluxio_ports"][1])


@contextmanager
def running(root: Path) -> Iterator[Place]:
    """Three workers with all three listeners, an etcd, a directory and an OSS bucket with the same files."""
    services.require("etcd")
    disk, chance = root / "disk", random.SystemRandom()
    net = f"127.{chance.randrange(64, 250)}.{chance.randrange(1, 250)}"
    hosts = [f"{net}.{number}" for number in (1, 2, 3)]
    with OssServer(buckets=["bucket"]) as oss, EtcdServer() as etcd:
        for name, size in SIZES.items():
            path = disk / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(name, size))
            oss.objects.put("bucket", f"root/{name}", content(name, size))
        urls = {"disk": f"file://{disk}", "oss": f"oss://{oss.host}/bucket/root"}
        options = {
            "access_key_id": "test-key-id",
            "access_key_secret": "env:TEST_OSS_SECRET",
            "use_ssl": False,
        }
        with LocalCluster(
            3,
            mounts={
                "disk": urls["disk"],
                "oss": {"url": urls["oss"], "options": {**options, "region": "cn-hangzhou"}},
            },
            etcd=etcd,
            environment={"TEST_OSS_SECRET": "test-key-secret"},
            each=[{"host": host, "alluxio_host": host} for host in hosts],
            alluxio_list_port=0,
            alluxio_dict_port=0,
            alluxio_data_port=DATA_PORT,
            lease_ttl_s=2,
        ) as cluster:
            deadline = time.monotonic() + 30
            while any(w.metrics()["kara_worker_alluxio_known_workers"] < 3 for w in cluster.workers):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield Place(
                cluster, etcd, disk, urls, dict(zip((w.id for w in cluster.workers), hosts, strict=True))
            )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("alluxio")) as found:
        yield found


@pytest.fixture(scope="module", params=VERSIONS)
def session(
    request: pytest.FixtureRequest, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AlluxiofsSession]:
    directory = tmp_path_factory.mktemp("client")
    with AlluxiofsSession(request.param, directory, **place.options(request.param)) as found:
        yield found


@pytest.fixture
def client(session: AlluxiofsSession) -> Iterator[AlluxiofsSession]:
    """The session, for a test in which the client's own count of errors must not change."""
    before = session.fs("get_error_metrics")["error_counts"]
    yield session
    assert session.fs("get_error_metrics")["error_counts"] == before


# -- reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["disk", "oss"])
def test_reads(place: Place, client: AlluxiofsSession, store: str) -> None:
    for name, size in SIZES.items():
        url, data = f"{place.urls[store]}/{name}", content(name, size)
        info = client.fs("info", url)
        assert (info["size"], info["type"], info["ufs_path"]) == (size, "file", url)
        assert client.fs("exists", url) is True
        assert client.fs("isdir", url) is False
        assert client.fs("head", url) == digest(data[:1024])
        assert client.fs("tail", url, num_of_bytes=7) == digest(data[-7:])
        assert client.read(url, (0, -1)) == [digest(data)]
        if (client.version, "range", name) in KNOWN:
            continue
        assert client.fs("cat_file", url) == digest(data)
        if size > 20:
            assert client.fs("cat_file", url, start=10, end=20) == digest(data[10:20])
            middle = size // 2
            assert client.read(url, (5, 10), (middle, 3 * MIB), (3, 5)) == [
                digest(data[5:15]),
                digest(data[middle : middle + 3 * MIB]),
                digest(data[3:8]),
            ]
    assert client.fs("exists", f"{place.urls[store]}/nothing here") is False
    assert client.fs("isdir", f"{place.urls[store]}/dir") is True


def test_listing(place: Place, client: AlluxiofsSession) -> None:
    for url in place.urls.values():
        entries = client.fs("ls", url, detail=True)
        found = {entry["ufs_path"].removeprefix(f"{url}/"): entry["size"] for entry in entries}
        assert {name: size for name, size in SIZES.items() if "/" not in name}.items() <= found.items()
        assert [entry["type"] for entry in entries if entry["ufs_path"] == f"{url}/dir"] == ["directory"]
        (file,) = client.fs("ls", f"{url}/plain.bin", detail=True)
        assert file["size"] == SIZES["plain.bin"]
    if client.version == "1.0.17":  # 1.1.17 raises an AttributeError of its own
        assert "/disk/plain.bin" in client.fs("ls", place.urls["disk"])


def test_what_is_not_there_or_not_mounted(place: Place, session: AlluxiofsSession) -> None:
    missing = f"{place.urls['disk']}/no/such/file"
    with pytest.raises(CallFailed) as caught:
        session.client("get_file_status", missing)
    # 1.0.17 has no other exception than Exception
    assert caught.value.name == ("FileNotFoundError" if session.version == "1.1.17" else "Exception")
    for outside in ("file:///etc/passwd", "s3://elsewhere/key"):
        with pytest.raises(CallFailed, match=r"404|no mount covers"):
            session.client("get_file_status", outside)


def test_one_copy_for_32_threads_and_for_native_clients(place: Place, client: AlluxiofsSession) -> None:
    directory = place.disk / f"many-{client.version}"
    directory.mkdir()
    data = {f"file {n}": random.Random(n).randbytes(3 * MIB + n) for n in range(8)}
    for name, each in data.items():
        (directory / name).write_bytes(each)
    before = place.cluster.total("kara_worker_store_read_bytes_total")
    chance = random.Random(client.version)
    wanted = [(chance.choice(list(data)), start, start + chance.randrange(1, MIB))
              for start in (chance.randrange(3 * MIB) for _ in range(200))]  # fmt: skip
    wanted += [(name, 0, len(each)) for name, each in data.items()]
    steps = [
        {"call": "cat_file", "args": [f"file://{directory}/{name}", start, stop]}
        for name, start, stop in wanted
    ]
    found = client.many(steps, threads=32)
    assert found == [digest(data[name][start:stop]) for name, start, stop in wanted]
    with closing(KaraFileSystem(**place.cluster.client_options, skip_instance_cache=True)) as native:
        for name, each in data.items():
            assert native.cat_file(f"/disk/many-{client.version}/{name}") == each
    fetched = place.cluster.total("kara_worker_store_read_bytes_total") - before
    assert fetched == sum(map(len, data.values()))


@pytest.mark.parametrize("size", [70 * MIB, pytest.param(200 * MIB, marks=pytest.mark.slow)])
def test_files_of_several_owners(place: Place, client: AlluxiofsSession, size: int) -> None:
    """Beyond 64 MiB a file has another owner, and the first one fetches from there."""
    url, path = (
        f"{place.urls['disk']}/large-{size}-{client.version}",
        place.disk / f"large-{size}-{client.version}",
    )
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    if client.version == "1.0.17":
        assert client.read(url, (0, -1)) == [digest(data)]
    step = 8 * MIB  # 1.1.17 takes no more than 20 MiB in one answer, and reads 5 MiB ahead
    pieces = [(start, min(step, size - start)) for start in range(0, size, step)]
    assert client.read(url, *pieces) == [digest(data[start : start + length]) for start, length in pieces]
    path.unlink()


# -- changing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["disk", "oss"])
def test_changes(place: Place, client: AlluxiofsSession, store: str) -> None:
    root = f"{place.urls[store]}/changes {client.version}"
    assert client.fs("mkdir", root) is True
    write = "write" if client.version == "1.0.17" else "write_bytes"
    for name in ("plain", "with space", "a&b=c", "a+b", "100%", "新文件"):
        url, data = f"{root}/{name}", random.Random(7).randbytes(3 * MIB + 5)
        assert client.fs(write, url, {"seed": 7, "size": len(data)}) is True
        assert client.read(url, (0, -1)) == [digest(data)]
        assert client.fs("copy", url, f"{url}.copy") is True
        assert client.fs("mv", url, f"{url}.moved") is True
        assert client.fs("cat_file", f"{url}.moved") == digest(data)
        assert client.fs("exists", url) is False
        assert client.fs("rm", f"{url}.moved") is True
        assert client.fs("exists", f"{url}.moved") is False
        assert client.fs("cat_file", f"{url}.copy") == digest(data)
        assert client.fs("touch", f"{url}.empty") is True
        assert client.fs("info", f"{url}.empty")["size"] == 0
        assert client.fs("touch", f"{url}.copy") is True
        assert client.fs("cat_file", f"{url}.copy", start=0, end=9) == digest(data[:9])
    if client.version == "1.0.17":  # 1.1.17 asks for the size of the file that it is about to make
        assert client.step({"write": f"{root}/by open", "seed": 9, "size": 1000}) is True
        assert client.fs("cat_file", f"{root}/by open") == digest(random.Random(9).randbytes(1000))
    assert client.fs("rm", root, recursive=True) is True
    assert client.fs("exists", root) is False


def test_what_would_lose_data_is_refused(place: Place, session: AlluxiofsSession) -> None:
    root = place.disk / f"kept {session.version}"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"kept")
    (root / "other").write_bytes(b"other")
    url = f"file://{root}"
    with pytest.raises(CallFailed, match="409"):
        session.client("mv", f"{url}/sub/file", f"{url}/other")
    with pytest.raises(CallFailed):
        session.fs("rm", f"{url}/sub")  # not empty, and not recursive
    with pytest.raises(CallFailed, match="cut at a '#'"):
        session.fs("touch", f"{url}/other#2")
    if session.version == "1.1.17":  # it mixes up its flags: this arrives as one that means something else
        with pytest.raises(CallFailed, match="refused"):
            session.fs("rm", f"{url}/other", remove_alluxio_only=True)
    assert (root / "sub" / "file").read_bytes() == b"kept"
    assert (root / "other").read_bytes() == b"other"
    assert sorted(path.name for path in root.iterdir()) == ["other", "sub"]


# -- loading -------------------------------------------------------------------------------------------


def test_load_jobs(place: Place, client: AlluxiofsSession) -> None:
    directory = place.disk / f"load-{client.version}"
    directory.mkdir()
    for number in range(5):
        (directory / str(number)).write_bytes(random.Random(number).randbytes(MIB + number))
    url = f"file://{directory}"
    assert client.client("submit_load", url) is True
    state, answer = client.client("load_progress", url)
    assert (state, answer["jobState"]) == ("SUCCEEDED", "SUCCEEDED")
    before = place.cluster.total("kara_worker_store_read_bytes_total")
    for number in range(5):
        expected = digest(random.Random(number).randbytes(MIB + number))
        assert client.fs("cat_file", f"{url}/{number}") == expected
    assert place.cluster.total("kara_worker_store_read_bytes_total") == before  # all of it was there
    assert client.client("stop_load", url) is True  # of an ended job: it stays as it is
    assert client.client("load_progress", url)[0] == "SUCCEEDED"
    assert client.client("load", f"{place.urls['disk']}/dir") is True
    assert client.client("load_progress", f"{url}/unknown")[0] == "FAILED"
    assert client.client("stop_load", f"{url}/unknown") is False


# -- a worker less --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0.17", pytest.param("1.1.17", marks=pytest.mark.slow)])
def test_one_worker_is_killed(tmp_path: Path, version: str) -> None:
    """Neither version retries, so what it asks the dead worker for fails; no answer is wrong, and once
    the client can know (1.0.17 by etcd, 1.1.17 by asking another worker), nothing fails any more."""
    with running(tmp_path / "alluxio") as place:
        first, _, last = place.cluster.workers
        options = place.options(version)
        if version == "1.1.17":  # its list of workers is for ever; a name has those that live
            options = {"load_balance_domain": place.hosts[first.id], "worker_http_port": dict_port(first)}
        with AlluxiofsSession(version, tmp_path / "client", **options) as session:
            names = [name for name in SIZES if SIZES[name] and name != "a#b"]
            steps = [{"call": "cat_file", "args": [f"{place.urls['disk']}/{name}"]} for name in names] * 4
            expected = [digest(content(name, SIZES[name])) for name in names] * 4
            assert session.many(steps, threads=32) == expected
            last.kill()
            deadline = time.monotonic() + 60
            while True:
                outcomes = session.step({"many": steps, "threads": 32})
                good = [outcome["value"] == wanted for outcome, wanted in zip(outcomes, expected, strict=True)
                        if "value" in outcome]  # fmt: skip
                assert all(good)
                if len(good) == len(expected) and not named(place, first, names, place.hosts[last.id]):
                    break
                assert time.monotonic() < deadline, outcomes
            errors = session.fs("get_error_metrics")["error_counts"]
            assert session.many(steps, threads=32) == expected
            assert session.fs("get_error_metrics")["error_counts"] == errors


def named(place: Place, worker: WorkerProcess, names: list[str], host: str) -> list[str]:
    """The files for which the worker still names a host."""
    front = f"http://{place.hosts[worker.id]}:{dict_port(worker)}/v1/node?path="
    return [name for name in names if node(front + quote(f"{place.urls['disk']}/{name}"))["Host"] == host]


def node(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return dict(json.load(answer))
