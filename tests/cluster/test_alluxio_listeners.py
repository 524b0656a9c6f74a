"""The listeners of the dialect as anybody's HTTP client sees them: endpoints, refusals, deadlines, faults."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import services
import trustme
from pages_on_disk import pages_on_disk

from kara_cache.token import Claims, mint
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.etcd_server import EtcdServer
from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_server import OssServer

MIB = 1 << 20
LIST, DICT, DATA = 0, 1, 2
SECRET = "a-secret-of-more-than-16-bytes"
OSS_SECRET = "the-secret-of-the-oss-account"
BODY = random.Random(1).randbytes(3 * MIB + 17)


@dataclass(frozen=True)
class Site:
    cluster: LocalCluster
    oss: OssServer
    disk: Path

    @property
    def worker(self) -> WorkerProcess:
        return self.cluster.workers[0]

    @property
    def url(self) -> str:
        """Of the directory."""
        return f"file://{self.disk}"

    @property
    def oss_url(self) -> str:
        return f"oss://{self.oss.host}/bucket"

    def put(self, name: str, data: bytes) -> str:
        """A file in the directory, and its url."""
        (self.disk / name).write_bytes(data)
        return f"{self.url}/{name}"

    def ask(self, listener: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        return ask(self.worker, listener, path, method, **headers)


def ask(
    worker: WorkerProcess, listener: int, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes]:
    """Status and body; http.client.IncompleteRead where the body ends early."""
    connection = http.client.HTTPConnection("127.0.0.1", worker.ready["alluxio_ports"][listener], timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def v1(name: str, url: str, **values: Any) -> str:
    """As a client pastes it together, with the path quoted."""
    rest = "".join(f"&{key}={value}" for key, value in values.items())
    return f"/v1/{name.replace('ID', sha256(url.encode()).hexdigest())}?ufsFullPath={quote(url)}{rest}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("listeners")
    disk = root / "disk"
    disk.mkdir()
    with OssServer(key_secret=OSS_SECRET, buckets=["bucket"]) as oss:
        with LocalCluster(
            1,
            mounts={
                "disk": f"file://{disk}",
                "trusted": {"url": f"file://{root}/trusted", "freshness": "max_age=1h"},
                "oss": {
                    "url": f"oss://{oss.host}/bucket",
                    "options": {
                        "access_key_id": "test-key-id",
                        "access_key_secret": "env:OSS_SECRET",
                        "use_ssl": False,
                        "region": "cn-hangzhou",
                        "retries": 0,
                    },
                },
            },
            environment={"OSS_SECRET": OSS_SECRET},
            alluxio_list_port=0,
            alluxio_dict_port=0,
            alluxio_data_port=0,
            alluxio_deadline_s=1,
        ) as cluster:
            (root / "trusted").mkdir()
            yield Site(cluster, oss, disk)


def test_node_has_a_form_for_each_generation_of_clients(site: Site) -> None:
    path = f"/v1/node?path={site.url}/any thing".replace(" ", "%20")
    ports = site.worker.ready["alluxio_ports"]
    (entry,) = json.loads(site.ask(LIST, path)[1])
    (location,) = entry["mBlockInfo"]["mBlockInfo"]["mLocations"]
    assert location["mWorkerAddress"] == {"Host": "127.0.0.1", "HttpServerPort": ports[LIST]}
    assert json.loads(site.ask(DICT, path)[1]) == {"Host": "127.0.0.1", "HttpServerPort": ports[DICT]}


def test_pages_also_of_a_client_that_sends_no_path(site: Site) -> None:
    url = site.put("paged", BODY)
    name = v1("file/ID/page/1", url)
    assert site.ask(LIST, name) == (200, BODY[MIB : 2 * MIB])
    assert site.ask(LIST, v1("file/ID/page/3", url)) == (200, BODY[3 * MIB :])
    assert site.ask(LIST, v1("file/ID/page/9", url)) == (200, b"")
    offset = v1("file/ID/page/2", url).replace("?", "?offset=10&length=20&")
    assert site.ask(LIST, offset) == (200, BODY[2 * MIB + 10 : 2 * MIB + 30])
    assert site.ask(LIST, f"/v1/info?path={quote(url)}")[0] == 200
    assert site.ask(LIST, name.partition("?")[0]) == (200, BODY[MIB : 2 * MIB])
    assert site.ask(LIST, name, method="POST")[0] == 403  # the cache holds nothing that the store does not


def test_ranges_may_run_past_the_end(site: Site) -> None:
    url = site.put("ranged", BODY)
    for offset, length in (
        (0, 10),
        (len(BODY) - 5, 100),
        (len(BODY), 5),
        (len(BODY) + 9, 5),
        (7, -1),
        (0, 0),
    ):
        stop = len(BODY) if length < 0 else offset + length
        assert site.ask(DICT, v1("range/ID", url, offset=offset, length=length)) == (200, BODY[offset:stop])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/info?path=s3://elsewhere/key", 404),
        ("/v1/info?path=file:///etc/passwd", 404),
        ("/v1/info?path={url}/none", 500),  # "not found" for every published client
        ("/v1/info?path={url}/../../etc/passwd", 400),
        ("/v1/info", 400),
        ("/v1/info?path=%ff", 400),
        ("/v1/files?path={url}/none", 500),
        ("/v1/node", 400),
        ("/v1/load?path={url}&opType=pause", 400),
        ("/v1/range/0?ufsFullPath={url}/none&offset=0&length=1", 500),
        ("/v1/range/0?ufsFullPath={url}/none", 400),
        ("/v1/range/0?ufsFullPath={url}/none&offset=x&length=1", 400),
        ("/v1/range/0", 400),
        ("/v1/chunk/0?ufsFullPath={url}", 409),  # a directory
        ("/v1/unknown", 404),
        ("/v2/info?path={url}", 404),
        ("/metrics", 404),
        ("/kara/v1/worker", 404),
    ],
)
def test_refusals(site: Site, path: str, status: int) -> None:
    for listener in (LIST, DICT):
        got, body = site.ask(listener, path.replace("{url}", site.url))
        assert (got, list(json.loads(body))) == (status, ["message"])


def test_the_data_port_and_the_ranges_of_alluxiofs(site: Site) -> None:
    site.put("a #b%20c", BODY)
    path = quote("/disk/a #b%20c")
    assert site.ask(DATA, path) == (200, BODY)
    assert site.ask(DATA, path, Range="bytes=0--2") == (200, BODY)
    assert site.ask(DATA, path, Range="bytes=5-9") == (206, BODY[5:10])
    assert site.ask(DATA, path, Range="bytes=7-5")[0] == 416  # "from 7 on", and never the whole file
    assert site.ask(DATA, path, method="HEAD") == (200, b"")
    assert site.ask(DATA, "/disk")[0] == 200
    assert [site.ask(DATA, p)[0] for p in ("/disk/none", "/none/x", "/disk/../../etc/passwd")] == [
        404,
        404,
        400,
    ]
    assert site.ask(DATA, path, method="PATCH")[0] == 405
    assert site.ask(DATA, "/disk?acl")[0] == 501


def test_a_trusted_file_is_served_without_asking_its_store(site: Site) -> None:
    place = site.disk.parent / "trusted" / "file"
    place.write_bytes(BODY)
    asked = 'kara_worker_store_requests_total{mount="trusted",result="ok",verb="info"}'
    assert site.ask(DATA, "/trusted/file") == (200, BODY)
    before = site.worker.metrics()[asked]
    connection = http.client.HTTPConnection("127.0.0.1", site.worker.ready["alluxio_ports"][DATA], timeout=30)
    chance = random.Random(2)
    for _ in range(100):
        start = chance.randrange(len(BODY))
        stop = start + chance.randrange(1, 2 * MIB)
        connection.request("GET", "/trusted/file", headers={"Range": f"bytes={start}-{stop - 1}"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, BODY[start:stop])
    connection.request("GET", "/trusted/file", headers={"If-None-Match": answer.headers["ETag"]})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (304, b"")
    connection.close()
    assert site.worker.metrics()[asked] == before


def test_a_page_that_is_wrong_on_disk_is_fetched_again(tmp_path: Path) -> None:
    """Clients of the dialect verify nothing, so the worker compares what it sends."""
    data = random.Random(9).randbytes(2 * MIB)
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "file").write_bytes(data)
    whole = v1("chunk/ID", f"file://{disk}/file")
    part = v1("range/ID", f"file://{disk}/file", offset=MIB + 500_010, length=10)
    with LocalCluster(
        1, mounts={"disk": f"file://{disk}"}, alluxio_list_port=0, alluxio_data_port=0
    ) as cluster:
        (worker,) = cluster.workers
        assert ask(worker, LIST, whole) == (200, data)
        for listener, path, expected in (
            (LIST, whole, data),
            (LIST, part, data[MIB + 500_010 :][:10]),
            (DATA, "/disk/file", data),
        ):
            worker.stop()  # drains, so all pages are written
            damaged = 0
            for page in pages_on_disk(worker.page_dir):
                if page.read() == data[MIB:]:
                    page.flip_data(500_015)
                    damaged += 1
            worker.start()
            assert damaged == 1
            assert ask(worker, listener, path) == (200, expected)
            assert worker.metrics()['kara_worker_corrupt_pages_total{where="data"}'] == 1


def test_a_store_that_does_not_answer(site: Site) -> None:
    site.oss.objects.put("bucket", "slow", BODY)
    url = f"{site.oss_url}/slow"
    for listener, path in (
        (LIST, v1("chunk/ID", url)),
        (DICT, f"/v1/info?path={quote(url)}"),
        (DATA, "/oss/slow"),
    ):
        site.oss.faults.add(Fault.slow(3.0), key="slow")
        status, body = site.ask(listener, path)
        assert (status, b"within 1 s" in body) == (503, True)
        site.oss.faults.clear()
    assert site.ask(DATA, "/oss/slow") == (200, BODY)


def test_a_store_that_breaks_off_never_makes_a_short_file(site: Site) -> None:
    data = random.Random(3).randbytes(20 * MIB)
    site.oss.objects.put("bucket", "broken", data)
    url = f"{site.oss_url}/broken"
    for listener, path in ((LIST, v1("chunk/ID", url)), (DATA, "/oss/broken")):
        free(site, "/oss/broken")
        site.oss.faults.add(Fault.error(500, "InternalError"), skip=1, times=1000, method="GET", key="broken")
        with pytest.raises(http.client.IncompleteRead) as caught:
            site.ask(listener, path)
        assert data.startswith(caught.value.partial)
        site.oss.faults.clear()
        assert site.ask(listener, path) == (200, data)


def free(site: Site, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.worker.port, timeout=30)
    connection.request("POST", f"/kara/v1/free?path={path}")
    assert connection.getresponse().status == 200
    connection.close()


def test_where_stores_are_and_nothing_that_opens_them(site: Site) -> None:
    status, body = site.ask(DICT, "/v1/ufsInfo")
    assert (status, json.loads(body)[site.oss_url]) == (200, {"alluxio_path": "/oss"})
    assert OSS_SECRET.encode() not in body
    assert OSS_SECRET not in site.worker.log()


def test_requests_count_under_the_names_of_alluxio(site: Site) -> None:
    site.ask(LIST, f"/v1/info?path={site.url}")
    metrics = site.worker.metrics()
    assert metrics['alluxio_http_server_call_latency_ms_count{method="v1_info",success="true"}'] >= 1
    assert metrics['alluxio_http_server_result_total{method="v1_info",state="ok"}'] >= 1


def test_garbage_ends_a_connection_and_nothing_else(site: Site) -> None:
    chance = random.Random(4)
    heads = [f"GET /v1/{chance.randbytes(9).hex()}?{chance.randbytes(50).hex()}" for _ in range(50)]
    heads += [f"GET /v1/range/{'f' * 64}?ufsFullPath=%{'zz%' * 20}&offset=0&length=1", "GET /disk/%ff%fe"]
    heads += [
        "GET /?delete",
        "POST /disk?delete",
        "PUT /disk/x?partNumber=x&uploadId=y",
        "GET /disk?max-keys=-1",
    ]
    for head in heads:
        method, _, path = head.partition(" ")
        for listener in (LIST, DATA):
            assert 200 <= site.ask(listener, path, method)[0] < 504
    assert site.ask(LIST, f"/v1/info?path={site.url}")[0] == 200
    assert "Traceback" not in site.worker.log()


# -- who may ------------------------------------------------------------------------------------------------


def token(verbs: str, prefix: str = "/") -> str:
    claims = Claims(frozenset(verbs.split()), prefix, int(time.time()) + 600, "test")  # type: ignore[arg-type]
    return f"Bearer {mint(SECRET.encode(), claims)}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The list listener asks for tokens, the other two are anonymous by name."""
    root = tmp_path_factory.mktemp("guarded")
    (root / "secret").write_text(SECRET)
    (root / "disk").mkdir()
    (root / "disk" / "file").write_bytes(b"content")
    with OssServer() as oss:
        with LocalCluster(
            1,
            mounts={"disk": f"file://{root}/disk"},
            secret=f"file:{root}/secret",
            alluxio_list_port=0,
            alluxio_dict_port=0,
            alluxio_data_port=0,
            alluxio_anonymous=["dict", "data"],
        ) as cluster:
            yield Site(cluster, oss, root / "disk")


def test_tokens(guarded: Site) -> None:
    path = v1("chunk/ID", f"{guarded.url}/file")
    assert guarded.ask(LIST, path)[0] == 401
    assert guarded.ask(LIST, path, Authorization=token("write"))[0] == 401
    assert guarded.ask(LIST, path, Authorization=token("read", "/other"))[0] == 401
    assert guarded.ask(LIST, path, Authorization=token("read")) == (200, b"content")
    touch = v1("touch/ID", f"{guarded.url}/new")
    assert guarded.ask(LIST, touch, "POST", Authorization=token("read"))[0] == 401
    assert guarded.ask(LIST, touch, "POST", Authorization=token("write"))[0] == 200
    assert (guarded.disk / "new").exists()
    for path in ("/v1/node?path=x", "/v1/ufsInfo"):
        assert guarded.ask(LIST, path)[0] == 401


def test_anonymous_listeners_read_and_do_not_write(guarded: Site) -> None:
    url = f"{guarded.url}/file"
    assert guarded.ask(DICT, v1("chunk/ID", url)) == (200, b"content")
    assert guarded.ask(DATA, "/disk/file") == (200, b"content")
    assert guarded.ask(DATA, "/disk/file", Authorization="AWS4-HMAC-SHA256 of any kind") == (200, b"content")
    for name in ("rm", "touch", "mkdir", "chunk"):
        assert guarded.ask(DICT, v1(f"{name}/ID", url), "POST")[0] == 403
    assert guarded.ask(DATA, "/disk/file", "DELETE")[0] == 403
    assert guarded.ask(DATA, "/disk/other", "PUT")[0] == 403
    assert guarded.ask(DATA, "/disk/other?uploads", "POST")[0] == 403
    assert sorted(path.name for path in guarded.disk.iterdir() if path.name != "new") == ["file"]
    warnings = [line for line in guarded.worker.log().splitlines() if "asks nobody" in line]
    assert len(warnings) == 2


# -- workers of a fixed list --------------------------------------------------------------------------------


def test_one_copy_without_etcd(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    urls = {}
    for number in range(6):
        (disk / str(number)).write_bytes(random.Random(number).randbytes(2 * MIB + number))
        urls[number] = f"file://{disk}/{number}"
    with LocalCluster(3, mounts={"disk": f"file://{disk}"}, peers=True, alluxio_dict_port=0) as cluster:
        for worker in cluster.workers:
            named = json.loads(ask(worker, DICT, f"/v1/node?path={urls[0]}")[1])
            assert named == {"Host": "127.0.0.1", "HttpServerPort": worker.ready["alluxio_ports"][DICT]}
            for number, url in urls.items():
                data = random.Random(number).randbytes(2 * MIB + number)
                assert ask(worker, DICT, v1("chunk/ID", url)) == (200, data)
        fetched = cluster.total("kara_worker_store_read_bytes_total")
    assert fetched == sum(2 * MIB + number for number in urls)


@pytest.mark.parametrize("mutual", [False, True])
def test_one_copy_in_a_cluster_with_tls(tmp_path: Path, mutual: bool) -> None:
    """What another worker keeps is read from there by TLS, with a certificate where one is asked for."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    (tmp_path / "server.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    disk = tmp_path / "disk"
    disk.mkdir()
    data = {str(number): random.Random(number).randbytes(MIB + number) for number in range(6)}
    for name, each in data.items():
        (disk / name).write_bytes(each)
    files = {
        key: f"{tmp_path}/{name}" for key, name in (("tls_cert", "server.pem"), ("tls_key", "server.key"))
    }
    trust = {"tls_client_ca" if mutual else "tls_peer_ca": f"{tmp_path}/ca.pem"}
    with LocalCluster(
        2,
        mounts={"disk": f"file://{disk}"},
        peers=True,
        alluxio_data_port=0,
        alluxio_anonymous=["data"],
        **files,
        **trust,
    ) as cluster:
        for worker in cluster.workers:
            for name, each in data.items():
                assert ask(worker, DATA, f"/disk/{name}") == (200, each)
        fetched = cluster.total("kara_worker_store_read_bytes_total")
    assert fetched == sum(map(len, data.values()))


# -- owners that go ---------------------------------------------------------------------------------------


@pytest.mark.etcd
def test_the_owner_is_killed_while_another_worker_reads_from_it(tmp_path: Path) -> None:
    services.require("etcd")
    data = random.Random(6).randbytes(60 * MIB)
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "file").write_bytes(data)
    url = f"file://{disk}/file"
    with (
        EtcdServer() as etcd,
        LocalCluster(
            3,
            mounts={"disk": f"file://{disk}"},
            etcd=etcd,
            alluxio_list_port=0,
            alluxio_dict_port=0,
            lease_ttl_s=2,
        ) as cluster,
    ):
        deadline = time.monotonic() + 30
        while any(w.metrics()["kara_worker_alluxio_known_workers"] < 3 for w in cluster.workers):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        path = f"/v1/node?path={url}"
        named = {json.loads(ask(worker, DICT, path)[1])["HttpServerPort"] for worker in cluster.workers}
        assert len(named) == 1  # every worker names the same owner
        (owner,) = [w for w in cluster.workers if w.ready["alluxio_ports"][DICT] in named]
        other = next(w for w in cluster.workers if w is not owner)
        connection = http.client.HTTPConnection("127.0.0.1", other.ready["alluxio_ports"][DICT], timeout=60)
        connection.request("GET", v1("chunk/ID", url))
        answer = connection.getresponse()
        got = answer.read(MIB)
        owner.kill()
        got += answer.read()
        connection.close()
        assert sha256(got).digest() == sha256(data).digest()
        deadline = time.monotonic() + 30
        while json.loads(ask(other, DICT, path)[1])["HttpServerPort"] in named:
            assert time.monotonic() < deadline
            time.sleep(0.05)
