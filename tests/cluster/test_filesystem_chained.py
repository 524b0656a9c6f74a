"""`kara::<url>`: over a cluster, over a private worker with nothing configured, and past dead workers."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.core import url_to_fs
from mounted import Mounted, mounted
from services import require_module

from kara_cache import local_worker
from kara_cache.errors import AccessDenied, ConfigError
from kara_cache.filesystem import KaraFileSystem
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
CONTENT = random.Random(5).randbytes(6 << 20)


@pytest.fixture
def kara(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path) as found:
        yield found


def test_a_url_leads_to_the_mount_that_holds_it(kara: Mounted) -> None:
    (kara.directory / "set").mkdir()
    for part in "abc":
        (kara.directory / "set" / f"{part}.bin").write_bytes(part.encode() * 10)
    url = f"kara::file://{kara.directory}/set"
    files = fsspec.open_files(f"{url}/*.bin", kara=kara.options)
    assert [file.full_name for file in files] == [f"{url}/{part}.bin" for part in "abc"]
    with files as opened:
        assert [file.read() for file in opened] == [b"a" * 10, b"b" * 10, b"c" * 10]
    fs, path = url_to_fs(url, kara=kara.options)
    assert fs.kara_path(path) == "/data/set"
    fs.cp_file(f"{path}/a.bin", f"{path}/copy")
    assert (kara.directory / "set" / "copy").read_bytes() == b"a" * 10
    fs.rm(f"{path}/copy")
    assert fs.ls(path, detail=False) == [f"{kara.directory}/set/{part}.bin" for part in "abc"]
    assert kara.cluster.total("kara_worker_fills_total") == 3
    with fsspec.open(f"{url}/new.txt", "w", kara=kara.options) as file:
        file.write("new")
    assert (kara.directory / "set" / "new.txt").read_text() == "new"
    fs.close()


def test_a_url_that_no_mount_covers_names_the_mounts(kara: Mounted) -> None:
    fs = kara.filesystem(target_protocol="memory")
    with pytest.raises(ConfigError, match="no mount covers"):
        fs.cat("memory://elsewhere/a")
    assert kara.filesystem().cat_ranges([f"file://{kara.directory}/none"], 0, 1)
    fs.close()


def test_a_refusal_is_never_an_empty_listing(tmp_path: Path) -> None:
    secret = "a secret of at least thirty-two bytes"
    with mounted(tmp_path, secret=secret) as kara:
        (kara.directory / "a").write_bytes(b"content")
        allowed, refused = kara.filesystem(secret=secret), kara.filesystem()
        assert allowed.find("data") == ["data/a"]
        for ask in (refused.find, refused.exists, refused.cat, lambda path: list(refused.walk(path))):
            with pytest.raises(AccessDenied):
                ask("data")
        allowed.close()


def test_a_worker_that_dies_in_the_middle_costs_nothing(kara: Mounted) -> None:
    (kara.directory / "a.bin").write_bytes(CONTENT)
    fs, path = url_to_fs(f"kara::file://{kara.directory}/a.bin", kara=kara.options)
    with fs.open(path) as file:
        read = file.read(1000)
        kara.cluster.workers[0].kill()
        read += file.read()
    assert read == CONTENT
    assert fs.cat(path) == CONTENT
    assert fs.client.metrics.fallbacks
    assert fs.client.metrics.read_bytes["store"] > len(CONTENT)
    fs.close()


def test_options_of_a_store_serve_kara_paths_as_well(kara: Mounted) -> None:
    (kara.directory / "a.bin").write_bytes(CONTENT)
    fs = kara.filesystem(file={})
    assert fs.cat_file("data/a.bin", 0, 10) == CONTENT[:10]
    kara.cluster.workers[0].kill()
    assert fs.cat("data/a.bin") == CONTENT
    fs.close()


def test_a_cluster_that_comes_back_is_used_again_also_by_open_files(kara: Mounted) -> None:
    (kara.directory / "a.bin").write_bytes(CONTENT)
    options = kara.options
    worker = kara.cluster.workers[0]
    worker.pause()
    fs, path = url_to_fs(
        f"kara::file://{kara.directory}/a.bin", kara={**options, "stall_timeout_s": 0.2, "suspect_s": 0}
    )
    with fs.open(path) as file:
        read = file.read(1000)
        assert fs.kara_path(path).startswith("/own-")
        worker.resume()
        read += file.read(1000)
        assert fs.kara_path(path) == "/data/a.bin"
        assert read + file.read() == CONTENT
    fs.close()


@pytest.fixture
def nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user of its own to the private worker: other directories, no settings. Gives where it runs."""
    for name in [name for name in os.environ if name.startswith("KARA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KARA_PAGE_DIRS", str(tmp_path / "pages"))
    monkeypatch.setenv("HOME", str(tmp_path))
    KaraFileSystem.clear_instance_cache()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SUBREAPER, 1)  # a worker that ends is ours to reap: not every container's init does
    with tempfile.TemporaryDirectory() as short:  # a socket's path holds no more than 107 bytes
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        yield Path(short)
        for attachment in KaraFileSystem._attachments.values():
            attachment.close()
        KaraFileSystem._attachments.clear()
        KaraFileSystem.clear_instance_cache()
        for pid in _private_workers(Path(short)):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    libc.prctl(_SUBREAPER, 0)


def _private_workers(runtime: Path) -> list[int]:
    return [json.loads(record.read_text())["pid"] for record in runtime.glob("**/worker.json")]


def test_the_first_read_starts_a_private_worker(nothing_configured: Path, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with fsspec.open(f"kara::file://{tmp_path}/a.bin") as file:
        assert file.read() == CONTENT
    assert len(_private_workers(nothing_configured)) == 1
    fs, path = url_to_fs(f"kara::file://{tmp_path}/a.bin")
    assert fs.kara_path(path).startswith("/u-")
    again = fs.client.explain(fs.kara_path(path))
    assert again["info"]["size"] == len(CONTENT)
    assert fs.cat_ranges([path, path], [0, 5], [2, 9]) == [CONTENT[:2], CONTENT[5:9]]


def test_a_private_worker_that_was_killed_is_started_again(
    nothing_configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_worker, "_RETRY_S", 0.0)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fs, path = url_to_fs(f"kara::file://{tmp_path}/a.bin")
    with fs.open(path) as file:
        read = file.read(1000)
        (first,) = _private_workers(nothing_configured)
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        into = bytearray(4 << 20)
        assert file.readinto(into) == len(into)
        assert fs.cat(path) == CONTENT
        assert read + into + file.read() == CONTENT
    (second,) = _private_workers(nothing_configured)
    assert second != first


def test_a_private_worker_that_cannot_start_costs_nothing_but_the_cache(
    nothing_configured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("KARA_PAGE_DIRS", "/proc/none/pages")
    (tmp_path / "a.bin").write_bytes(CONTENT)
    fs, path = url_to_fs(f"kara::file://{tmp_path}/a.bin")
    for _ in range(2):
        with fs.open(path) as file:
            assert file.read() == CONTENT
    assert [record.name for record in caplog.records].count("kara_cache.attachment") == 1


def test_http(nothing_configured: Path) -> None:
    require_module("aiohttp")  # fsspec's class for http needs it to take a url apart
    with RudeHttpServer({"data/a b.bin": CONTENT, "data/100%.txt": b"all"}) as server:
        url = f"kara::{server.url}/data"
        with fsspec.open(f"{url}/a%20b.bin") as file:
            assert file.read() == CONTENT
        fs, path = url_to_fs(url)
        names = fs.ls(path, detail=False)
        assert names == [f"{server.url}/data/100%25.txt", f"{server.url}/data/a%20b.bin"]
        assert [len(content) for content in fs.cat(names).values()] == [3, len(CONTENT)]
        with fsspec.open(f"kara://{server.url}/data/100%25.txt") as file:
            assert file.read() == b"all"


@pytest.mark.oss
def test_oss(nothing_configured: Path) -> None:
    require_module("oss2")
    with OssServer(buckets=["data"]) as server:
        credentials: dict[str, Any] = {
            "key": server.credentials.key_id,
            "secret": server.credentials.key_secret,
            "region": server.region,
            "use_ssl": False,
        }
        url = f"kara::oss://{server.host}/data"
        with fsspec.open(f"{url}/set/a.bin", "wb", oss=dict(credentials)) as file:
            file.write(CONTENT)
        with fsspec.open(f"{url}/set/a.bin", oss=dict(credentials)) as file:
            assert file.read() == CONTENT
        fs, path = url_to_fs(f"{url}/set", oss=dict(credentials))
        assert fs.find(path) == [f"/{server.host}/data/set/a.bin"]
        assert fs.unstrip_protocol(path) == f"{url}/set"
        by_option = dict(credentials, endpoint=server.endpoint)
        with fsspec.open("kara::oss://data/set/a.bin", oss=by_option) as file:
            assert file.read(10) == CONTENT[:10]
        fs.rm(path, recursive=True)
        assert not fs.exists(path)


@pytest.mark.s3
@pytest.mark.filterwarnings("ignore:Your installed version of s3fs is very old:UserWarning")
def test_s3(nothing_configured: Path, s3_server: str) -> None:
    options = {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": s3_server, "region_name": "us-east-1"},
    }
    with fsspec.open("kara::s3://data/set/a.bin", "wb", s3=dict(options)) as file:
        file.write(CONTENT)
    with fsspec.open("kara::s3://data/set/a.bin", s3=dict(options)) as file:
        assert file.read() == CONTENT
    (found,) = fsspec.open_files("kara::s3://data/set/*.bin", s3=dict(options))
    assert found.path == "data/set/a.bin"
    with fsspec.open("kara://s3://data/set/a.bin", s3=dict(options)) as file:
        assert file.read(10) == CONTENT[:10]


@pytest.fixture
def s3_server() -> Iterator[str]:
    """moto, with the bucket `data`."""
    boto3 = require_module("boto3")
    moto = require_module("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="data")
    client.close()
    yield url
    server.stop()
