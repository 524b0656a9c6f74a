"""`dialect="alluxio"`: a cluster of Alluxio's own, by its REST interface, asked as alluxiofs asks it."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from alluxio_server import AlluxioServer, Request, alluxio_server
from published import python_with
from services import free_port

from kara_cache.alluxio import AlluxioClient, AlluxioFileSystem, CPOption, LoadState, RMOption
from kara_cache.alluxio.native_members import NativeMembers
from kara_cache.alluxio.ring import Ring, RingWorker
from kara_cache.config import ClientConfig
from kara_cache.errors import AccessDenied, ConfigError, WorkerUnavailable
from kara_worker.testing.etcd_server import EtcdServer

pytestmark = pytest.mark.clients

URL = "s3://bucket/path/to/file"
CONTENT = bytes(range(256)) * 5000
NAMES = ["a b", "a&b=c", "a#b", "a+b", "a%41b", "中文", "a&offset=1", "q?x=1"]


@pytest.fixture
def server() -> Iterator[AlluxioServer]:
    with alluxio_server({URL: CONTENT, "s3://bucket/path/other": b"other"}) as served:
        yield served


@pytest.fixture
def client(server: AlluxioServer) -> Iterator[AlluxioClient]:
    made = AlluxioClient(dialect="alluxio", worker_hosts=server.address)
    yield made
    made.close()


def filesystem(*servers: AlluxioServer, **options: Any) -> AlluxioFileSystem:
    hosts = ",".join(server.address for server in servers)
    given = {"target_protocol": "s3", "worker_hosts": hosts, **options}
    return AlluxioFileSystem(dialect="alluxio", skip_instance_cache=True, **given)


def store_of(directory: Path) -> dict[str, Any]:
    """A store that the caller reaches itself."""
    return {"target_protocol": "file", "target_options": {}, "connect_timeout_s": 1}


# -- the requests are those of the published client ---------------------------------------------------

PUBLISHED = """
import logging, sys
from alluxiofs.client import AlluxioClient
from alluxiofs.core import CPOption, RMOption
port, logger = int(sys.argv[1]), logging.getLogger("x")
client = AlluxioClient(worker_hosts="127.0.0.1", worker_http_port=port, logger=logger)
"""
OPERATIONS = f"""
assert client.get_file_status("{URL}").length == {len(CONTENT)}
assert [status.name for status in client.listdir("s3://bucket/path")]
assert len(client.read_range("{URL}", 10, 20)) == 20
assert client.submit_load("s3://bucket/path/")
assert client.load_progress("s3://bucket/path/")[0].name == "RUNNING"
assert client.stop_load("s3://bucket/path/")
assert client.write_chunked("s3://bucket/new", b"x" * 10)
assert client.write_page("s3://bucket/page", 3, b"page")
assert client.mkdir("s3://bucket/directory")
assert client.mv("s3://bucket/new", "s3://bucket/moved")
assert client.cp("s3://bucket/moved", "s3://bucket/copied", CPOption(thread=2))
assert client.rm("s3://bucket/copied", RMOption(remove_alluxio_only=False, recursive=True))
"""


def test_requests_are_those_of_the_published_client(server: AlluxioServer, client: AlluxioClient) -> None:
    python = python_with("alluxiofs==1.0.17")
    run = [str(python), "-c", PUBLISHED + OPERATIONS, str(server.port)]
    subprocess.run(run, check=True, timeout=60, env={"PATH": os.environ["PATH"]})
    published, server.requests = server.requests, []
    exec(OPERATIONS, {"client": client, "CPOption": CPOption, "RMOption": RMOption})
    # How often a worker is asked who has a file, and how large it is, is the client's business.
    asides = {"node", "info"}
    assert [each for each in server.requests if each.endpoint not in asides] == [
        each for each in published if each.endpoint not in asides
    ]
    for each in published:
        assert each in server.requests


# -- files --------------------------------------------------------------------------------------------


def test_files_by_fsspec(server: AlluxioServer) -> None:
    fs = filesystem(server)
    assert fs.ls("s3://bucket/path") == ["bucket/path/other", "bucket/path/to"]
    assert fs.ls(URL) == ["bucket/path/to/file"]
    assert fs.find("bucket/path") == ["bucket/path/other", "bucket/path/to/file"]
    assert fs.glob("bucket/path/*/f*") == ["bucket/path/to/file"]
    assert fs.info(URL)["size"] == len(CONTENT)
    assert fs.isdir("bucket/path")
    assert not fs.exists("bucket/nothing")
    assert fs.cat_file(URL) == CONTENT
    assert fs.cat_file(URL, -3) == CONTENT[-3:]
    assert fs.cat_ranges([URL, URL], [0, 100], [5, 200]) == [CONTENT[:5], CONTENT[100:200]]
    with fs.open(URL) as file:
        file.seek(1000)
        assert file.read(100_000) == CONTENT[1000:101_000]
    fs.close()


@pytest.mark.parametrize("name", NAMES)
def test_names_arrive_as_they_are(server: AlluxioServer, name: str) -> None:
    fs = filesystem(server)
    url = f"s3://bucket/names/{name}"
    with fs.open(url, "wb") as file:
        file.write(name.encode())
    assert server.files[url] == name.encode()
    assert fs.cat_file(url) == name.encode()
    assert fs.ls("s3://bucket/names") == [f"bucket/names/{name}"]
    fs.close()


def test_changes_are_those_of_the_server(server: AlluxioServer) -> None:
    fs = filesystem(server)
    assert fs.mv(URL, "s3://bucket/moved")
    assert fs.copy("bucket/moved", "bucket/copied")
    assert server.files["s3://bucket/copied"] == CONTENT
    assert fs.rm("bucket/copied")
    assert fs.rm("bucket/moved", remove_alluxio_only=True)
    assert sorted(server.files) == ["s3://bucket/moved", "s3://bucket/path/other"]
    assert [request.endpoint for request in server.requests if request.method == "POST"] == [
        "mv",
        "copy",
        "rm",
        "rm",
    ]
    fs.close()


def test_alluxio_cannot_append(server: AlluxioServer) -> None:
    fs = filesystem(server)
    with pytest.raises(io.UnsupportedOperation, match="cannot append"):
        fs.open(URL, "ab")
    fs.close()


def test_loads(server: AlluxioServer, client: AlluxioClient) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 12:
            server.loads["s3://bucket/path"] = "SUCCEEDED"

    assert client.load("s3://bucket/path", sleep=wait)
    assert waits[:3] == [0.05, 0.1, 0.2]
    assert max(waits) == waits[-1] == 2.0
    server.loads["s3://bucket/path"] = "FAILED: 2 files"
    assert client.load_progress("s3://bucket/path") == LoadState.FAILED
    assert not client.load("s3://bucket/path", timeout=0, sleep=lambda _: None)


# -- answers and failures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, "gone"), FileNotFoundError),
        ((500, "File s3://x does not exist"), FileNotFoundError),
        ((500, "NotFoundException"), FileNotFoundError),
        ((403, "no"), PermissionError),
        ((401, "no"), AccessDenied),
        ((409, "there"), FileExistsError),
        ((500, "NullPointerException"), WorkerUnavailable),
        ((503, "busy"), WorkerUnavailable),
    ],
)
def test_what_a_status_means(
    server: AlluxioServer, client: AlluxioClient, answer: tuple[int, str], error: type[Exception]
) -> None:
    server.failures["info"] = answer
    with pytest.raises(error, match=answer[1]):
        client.get_file_status(URL)


@pytest.mark.parametrize("list_form", [True, False])
def test_the_worker_that_has_the_path_is_asked(list_form: bool) -> None:
    with alluxio_server({URL: b"here"}) as has, alluxio_server() as other:
        other.node, has.list_form, other.list_form = has.address, list_form, list_form
        has.node = has.address
        fs = filesystem(other, has)
        assert fs.cat_file(URL) == b"here"
        assert len(has.asked("range")) == 1
        assert not other.asked("range")
        assert len(has.asked("node")) + len(other.asked("node")) == 1
        fs.close()


def test_the_first_worker_asked_is_that_of_the_ring() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(alluxio_server({URL: b"here"})) for _ in range(3)]
        fs = filesystem(*servers)
        ring = Ring([RingWorker.of_host(server.address, server.port) for server in servers])
        fs.info(URL)
        asked = [server.port for server in servers if server.asked("node")]
        assert asked == [ring.owners(URL)[0].http_port]
        fs.close()


def test_a_worker_that_fails_is_replaced_by_another_one() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(alluxio_server({URL: b"here"})) for _ in range(3)]
        for server in servers[:2]:
            server.failures["range"] = (503, "busy")
        fs = filesystem(*servers)
        assert fs.cat_file(URL) == b"here"
        counts = fs.get_error_metrics()["error_counts"]
        assert set(counts) <= {"read_http_503"}
        fs.close()


def test_a_connection_that_died_while_it_was_idle_is_replaced(server: AlluxioServer) -> None:
    fs = filesystem(server)
    fs.info(URL)
    server.cuts = 1
    assert fs.cat_file(URL, 0, 5) == CONTENT[:5]
    assert fs.get_error_metrics()["error_counts"] == {}
    fs.close()


def test_a_worker_that_failed_is_left_alone_for_a_while() -> None:
    urls = [f"s3://bucket/{number}" for number in range(30)]
    with ExitStack() as stack:
        servers = [stack.enter_context(alluxio_server(dict.fromkeys(urls, b"here"))) for _ in range(2)]
        failing = servers[0]
        failing.failures["range"] = (503, "busy")
        ring = Ring([RingWorker.of_host(server.address, server.port) for server in servers])
        its_own = [url for url in urls if ring.owners(url)[0].http_port == failing.port]
        fs = filesystem(*servers, suspect_s=3600)
        for url in its_own:
            assert fs.cat_file(url) == b"here"
        assert len(its_own) > 1
        assert len(failing.asked("range")) == 1
        fs.close()


def test_dropping_from_the_cache_never_deletes_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with alluxio_server() as server:
        server.gone = True
        fs = filesystem(server, **store_of(tmp_path))
        with pytest.raises(WorkerUnavailable):
            fs.rm(str(tmp_path / "file"), remove_alluxio_only=True)
        assert (tmp_path / "file").read_bytes() == CONTENT
        fs.rm(str(tmp_path / "file"))
        assert not (tmp_path / "file").exists()
        fs.close()


def test_what_may_have_happened_is_not_asked_of_a_second_worker() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(alluxio_server({URL: b"here"})) for _ in range(2)]
        for server in servers:
            server.failures = {"mv": (503, "late"), "rm": (503, "late")}
        fs = filesystem(*servers)
        for change in (lambda: fs.mv(URL, "s3://bucket/moved"), lambda: fs.rm(URL)):
            with pytest.raises(WorkerUnavailable, match="whether it took effect is not known"):
                change()
        assert [len(server.asked("mv")) for server in servers].count(1) == 1
        assert sum(len(server.asked("rm")) for server in servers) == 1
        fs.close()


@pytest.mark.parametrize("short", [3, -3])
def test_an_answer_of_another_length_is_a_failure(server: AlluxioServer, tmp_path: Path, short: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    server.files[f"file://{path}"] = CONTENT
    server.short = short
    fs = filesystem(server, **store_of(tmp_path))
    if short > 0:
        assert fs.cat_file(str(path)) == CONTENT
        assert fs.get_error_metrics()["error_counts"] == {"read_short": 1}
    else:
        assert fs.cat_file(str(path), 0, 100) == CONTENT[:100]
        assert fs.get_error_metrics()["error_counts"] == {"read_long": 1}
    fs.close()


def test_an_open_file_goes_on_from_the_store_when_the_workers_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with alluxio_server({f"file://{path}": CONTENT}) as server:
        fs = filesystem(server, **store_of(tmp_path), read_ahead_bytes=0)
        file = fs.open(str(path))
        assert file.read(1000) == CONTENT[:1000]
        assert server.asked("range")
        server.gone = True
        assert file.read(10_000) == CONTENT[1000:11_000]
    assert file.read() == CONTENT[11_000:]
    assert fs.ls(str(tmp_path)) == [str(path)]
    assert fs.info(str(path))["size"] == len(CONTENT)
    assert not fs.exists(str(tmp_path / "nothing"))
    fs.pipe_file(str(tmp_path / "new"), b"new")
    assert (tmp_path / "new").read_bytes() == b"new"
    file.close()
    fs.close()


def test_without_a_store_the_error_says_who_failed_and_how(server: AlluxioServer) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    client = AlluxioClient(dialect="alluxio", worker_hosts=nobody, connect_timeout_s=1)
    with pytest.raises(WorkerUnavailable, match=f"{URL}: nothing could answer: {nobody}") as caught:
        client.read(URL)
    assert caught.value.reason == "refused"
    client.close()


def test_it_works_in_a_forked_child_and_after_it_was_closed(server: AlluxioServer) -> None:
    fs = filesystem(server)
    assert fs.cat_file(URL, 0, 10) == CONTENT[:10]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with open(writer, "wb") as answer:
            answer.write(fs.cat_file(URL, 10, 30))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        assert answer.read() == CONTENT[10:30]
    assert os.waitpid(child, 0)[1] == 0
    assert fs.cat_file(URL, 30, 50) == CONTENT[30:50]
    fs.close()
    assert fs.cat_file(URL, 50, 70) == CONTENT[50:70]
    assert pickle.loads(pickle.dumps(fs)).cat_file(URL, 0, 3) == CONTENT[:3]
    fs.close()


# -- who the workers are ------------------------------------------------------------------------------


def record(identifier: str, port: int) -> bytes:
    return json.dumps(
        {
            "Identity": {"version": 1, "identifier": identifier},
            "WorkerNetAddress": {"Host": "127.0.0.1", "HttpServerPort": port},
            "State": "AUTHORIZED",
        }
    ).encode()


@pytest.mark.etcd
def test_workers_of_etcd_and_a_value_that_is_none(server: AlluxioServer) -> None:
    from kara_cache.membership.etcd import EtcdClient

    with EtcdServer() as etcd:
        keys = EtcdClient(etcd.url)
        keys.put("/ServiceDiscovery/DefaultAlluxioCluster/one", record("01" * 16, server.port))
        keys.put("/ServiceDiscovery/DefaultAlluxioCluster/bad", b"not json")
        keys.close()
        client = AlluxioClient(dialect="alluxio", etcd_hosts="127.0.0.1", etcd_port=etcd.port)
        assert client.read(URL) == CONTENT
        etcd.stop()
        assert client.read(URL) == CONTENT
        client.close()


@pytest.mark.etcd
def test_a_cluster_that_seems_empty_keeps_its_last_workers() -> None:
    from kara_cache.membership.etcd import EtcdClient

    now = [0.0]
    with EtcdServer() as etcd:
        config = ClientConfig.load(env={}, cluster_name="ai", etcd_hosts="127.0.0.1", etcd_port=etcd.port)
        members = NativeMembers(config, 5, clock=lambda: now[0])
        keys = EtcdClient(etcd.url)
        keys.put("/ServiceDiscovery/ai/one", record("01" * 16, 1001))
        assert [worker.http_port for worker in members.ring().workers] == [1001]
        keys.put("/ServiceDiscovery/ai/two", record("02" * 16, 1002))
        assert len(members.ring().workers) == 1  # not asked at every call
        now[0] += 60
        assert len(members.ring().workers) == 2
        keys.delete("/ServiceDiscovery/ai/one")
        members.doubt()
        now[0] += 5
        assert [worker.http_port for worker in members.ring().workers] == [1002]
        keys.delete("/ServiceDiscovery/ai/two")
        now[0] += 60
        assert [worker.http_port for worker in members.ring().workers] == [1002]
        keys.close()
        members.close()


@pytest.mark.etcd
def test_without_etcd_the_store_answers(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"here")
    options = {"etcd_hosts": "127.0.0.1", "etcd_port": free_port(), "worker_hosts": None}
    fs = filesystem(**store_of(tmp_path), **options)
    assert fs.cat_file(str(tmp_path / "file")) == b"here"
    fs.close()


def test_a_real_cluster_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="want etcd_hosts or worker_hosts"):
        AlluxioClient(dialect="alluxio")


def test_paths_are_full_urls(client: AlluxioClient) -> None:
    with pytest.raises(ValueError, match="full url"):
        client.read("bucket/file")
    with pytest.raises(ValueError, match="full urls"):
        client.read("/mount/file")


def test_requests_are_kept_apart_by_value() -> None:
    assert Request("GET", "info", {"path": "a"}) != Request("GET", "info", {"path": "b"})
