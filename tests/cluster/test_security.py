"""Who may do what, on real listeners: tokens and scopes, TLS both ways, secrets that stay where they are."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
import trustme
from main_job import client_of, cluster_on, content, read_all, store_of

from kara_cache.errors import AccessDenied, WorkerUnavailable
from kara_cache.token import Claims, mint
from kara_worker.testing.cluster import LocalCluster

# the store of the module's fixture has a thread for each connection that the worker opens
pytestmark = pytest.mark.leaves_running("connections of the module's store")
SECRET = "a-secret-of-more-than-16-bytes"
DATA = content("file", 300_000)
PATH = "/web/file"


def token(verbs: str = "read", prefix: str = "/", seconds: float = 3600, secret: str = SECRET) -> str:
    claims = Claims(frozenset(verbs.split()), prefix, int(time.time() + seconds), "test")  # type: ignore[arg-type]
    return mint(secret.encode(), claims)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A worker that asks for tokens."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "secret").write_text(SECRET + "\n")
    with store_of(file=DATA) as store:
        with cluster_on(store, directory, workers=1, secret=f"file:{directory}/secret") as cluster:
            yield cluster


def test_the_shared_secret_opens_everything(guarded: LocalCluster) -> None:
    with client_of(guarded, secret=SECRET) as client:
        assert read_all(client, PATH) == DATA
        assert read_all(client, PATH) == DATA
        assert client.free(PATH)[0] == 1
        assert [mount["name"] for mount in client.mounts()] == ["web"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "token is required"),
        ("kara1.abc.def", "token"),
        (token(secret="another-secret-of-16-bytes"), "signature"),
        (token(seconds=-30), "expired"),
        (token(verbs="write"), "wanted read"),
        (token(prefix="/other"), "held read below '/other'"),
        (token(prefix="/we"), "held read below '/we'"),
    ],
    ids=["none", "malformed", "foreign", "expired", "verb", "prefix", "prefix not at a border"],
)
def test_a_token_that_does_not_fit_is_refused_with_the_reason(
    guarded: LocalCluster, given: str | None, message: str
) -> None:
    with client_of(guarded, token=given) as client:
        with pytest.raises(AccessDenied, match=message) as caught:
            client.info(PATH)
        assert given is None or given not in str(caught.value)


def test_scopes_hold_for_cached_pages_too(guarded: LocalCluster) -> None:
    with client_of(guarded, secret=SECRET) as owner:
        info = owner.info(PATH)
        assert owner.read(info, 0, 10) == DATA[:10]
    with client_of(guarded, token=token(prefix="/web/other")) as client:
        with pytest.raises(AccessDenied):
            client.read(info, 0, 10)
        with pytest.raises(AccessDenied):
            client.read_ranges([(info, 0, 10)])
        with pytest.raises(AccessDenied):
            client.free(PATH)
        with pytest.raises(AccessDenied):
            client.delete(PATH)
    with client_of(guarded, token=token(prefix=PATH)) as client:
        assert client.read(info, 0, 10) == DATA[:10]
        with pytest.raises(AccessDenied, match="wanted admin"):
            client.free(PATH)
        with pytest.raises(AccessDenied, match="wanted write"):
            client.delete(PATH)


def test_a_token_that_expires_stops_working_on_an_open_connection(guarded: LocalCluster) -> None:
    with client_of(guarded, token=token(seconds=2)) as client:
        info = client.info(PATH)
        with pytest.raises(AccessDenied, match="expired"):
            for _ in iter(lambda: client.read(info, 0, 10), b""):  # the test's own timeout ends it otherwise
                pass


def test_clients_cannot_add_mounts_to_a_shared_worker(guarded: LocalCluster) -> None:
    with client_of(guarded, secret=SECRET) as client, pytest.raises(AccessDenied, match="operator"):
        client.add_mount("file:///etc", {})


@pytest.mark.parametrize(
    "path",
    [
        "/web/../../etc/passwd",
        "/web/./file",
        "/web//file",
        "/web/fi\0le",
        "/web/a\nb",
        "/etc/passwd",
        "relative",
    ],
)
def test_hostile_paths_reach_no_store(guarded: LocalCluster, path: str) -> None:
    """As a client of our own refuses them, spoken by hand."""
    from urllib.parse import quote

    request = f"GET /kara/v1/info?path={quote(path)} HTTP/1.1\r\nAuthorization: Bearer {token()}\r\n\r\n"
    answer = exchange(guarded.workers[0].port, request.encode())
    assert answer.split(b" ")[1] in (b"400", b"404")
    assert b"root:" not in answer


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, trustme.CA]:
    directory, authority = tmp_path_factory.mktemp("ca"), trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, certificate in (("server", "127.0.0.1"), ("client", "trainer.example")):
        issued = authority.issue_cert(certificate)
        issued.private_key_pem.write_to_path(str(directory / f"{name}.key"))
        with (directory / f"{name}.pem").open("wb") as file:
            for part in issued.cert_chain_pems:
                file.write(part.bytes())
    return directory, authority


def test_tls_and_mutual_tls(authority: tuple[Path, trustme.CA], tmp_path: Path) -> None:
    files, _ = authority
    server = {"tls_cert": str(files / "server.pem"), "tls_key": str(files / "server.key")}
    trust = {"tls_ca": str(files / "ca.pem")}
    proof = {"tls_cert": str(files / "client.pem"), "tls_key": str(files / "client.key")}
    with store_of(file=DATA) as store:
        with cluster_on(store, tmp_path / "tls", workers=1, **server) as cluster:
            with client_of(cluster, **trust) as client:
                assert read_all(client, PATH) == DATA
                assert [bytes(part) for part in client.read_ranges([(client.info(PATH), 7, 9)])] == [
                    DATA[7:16]
                ]
            with client_of(cluster) as plain, pytest.raises(WorkerUnavailable):
                plain.info(PATH)
            stranger = trustme.CA()
            stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
            with client_of(cluster, tls_ca=str(tmp_path / "stranger.pem")) as wary:
                with pytest.raises((WorkerUnavailable, ssl.SSLError)):
                    wary.info(PATH)
        mutual = {**server, "tls_client_ca": str(files / "ca.pem")}
        with cluster_on(store, tmp_path / "mtls", workers=1, **mutual) as cluster:
            with client_of(cluster, **trust, **proof) as client:
                assert read_all(client, PATH) == DATA
            with client_of(cluster, **trust) as nameless, pytest.raises(WorkerUnavailable):
                nameless.info(PATH)


def test_secrets_stay_where_they_are(tmp_path: Path) -> None:
    """Planted values are looked for in etcd, logs, metrics, answers and `ps`."""
    from kara_worker.testing.oss_server import OssServer

    key_id, key_secret = "planted-key-id-3141592653", "planted-key-secret-2718281828"
    with (
        OssServer(key_id=key_id, key_secret=key_secret, buckets=["data"]) as oss,
        etcd_servers.server() as etcd,
    ):
        options: dict[str, Any] = {
            "access_key_id": "env:PLANTED_ID",
            "access_key_secret": "env:PLANTED_SECRET",
            "use_ssl": False,
            "region": "cn-hangzhou",
        }
        with LocalCluster(
            1,
            mounts={"oss": {"url": f"oss://{oss.host}/data", "options": options}},
            etcd=etcd,
            directory=tmp_path,
            secret="env:PLANTED_TOKEN_SECRET",
            environment={
                "PLANTED_ID": key_id,
                "PLANTED_SECRET": key_secret,
                "PLANTED_TOKEN_SECRET": SECRET,
            },
        ) as cluster:
            worker = cluster.workers[0]
            with client_of(cluster, secret=SECRET) as client:
                client.write("/oss/file", DATA)
                assert read_all(client, "/oss/file") == DATA
                with pytest.raises(FileNotFoundError):
                    client.info("/oss/missing")
                told = repr((client.mounts(), client.explain("/oss/file"), client.worker_status(), client))
            with client_of(cluster, token=token(secret="another-secret-of-16-bytes")) as stranger:
                with pytest.raises(AccessDenied) as caught:
                    stranger.info("/oss/file")
            with etcd_servers.client(etcd.url) as everything:
                kept = repr([item for prefix in ("/", "k") for item in everything.list(prefix)])
            metrics = repr(worker.metrics())
            processes = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True).stdout
            files = b"".join(
                p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size < 1 << 20
            )
            seen = (told + kept + metrics + str(caught.value) + worker.log()).encode() + processes + files
            assert worker.id.encode() in seen
            for planted in (key_id, key_secret, SECRET):
                assert planted.encode() not in seen.replace(DATA, b"")


def test_another_user_is_refused_on_the_unix_socket(guarded: LocalCluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    path = guarded.workers[0].ready["socket_path"]
    code = (
        "import socket,sys,os\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n s.connect(sys.argv[1])\n s.sendall(b'GET /kara/v1/worker HTTP/1.1\\r\\n\\r\\n')\n"
        " sys.stdout.write(s.recv(100).decode())\n"
        "except OSError as e: sys.stdout.write('refused ' + type(e).__name__)\n"
    )
    program = ["python3", "-c", code, path]
    mine = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True).stdout
    assert mine.startswith("HTTP/1.1 200")
    for directory in (Path(path), *Path(path).parents[:2]):
        directory.chmod(0o777)  # even if the directory let it in
    theirs = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", *program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout
    assert "200" not in theirs
