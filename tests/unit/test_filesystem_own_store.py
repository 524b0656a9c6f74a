"""No worker can be reached: a caller with options of its own for the store reads and writes all the same."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from kara_cache.errors import UnderStoreError, WorkerUnavailable
from kara_cache.filesystem import KaraFileSystem
from kara_cache.kara_tree import CHAINS
from kara_worker.testing.rude_http_server import RudeHttpServer, Rudeness


@pytest.fixture
def fs(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[KaraFileSystem]:
    fs = KaraFileSystem(
        target_protocol="file", worker_hosts=f"127.0.0.1:{free_port()}", state_dir=str(tmp_path / "state")
    )
    yield fs
    fs.close()


def test_reads_and_listings(fs: KaraFileSystem, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a").write_bytes(b"one\ntwo\n")
    (tmp_path / "data" / "deep" / "b").write_bytes(b"b")
    a, b = str(tmp_path / "data" / "a"), str(tmp_path / "data" / "deep" / "b")
    assert fs.find(tmp_path / "data") == [a, b]
    assert fs.glob(f"{tmp_path}/data/**/b") == [b]
    assert fs.cat([a, b]) == {a: b"one\ntwo\n", b: b"b"}
    assert fs.cat_ranges([a, b], [4, 0], None) == [b"two\n", b"b"]
    with fs.open(a) as file:
        assert file.readlines() == [b"one\n", b"two\n"]
    with pytest.raises(FileNotFoundError):
        fs.cat(f"{tmp_path}/none")


@pytest.fixture
def web(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[tuple[KaraFileSystem, RudeHttpServer]]:
    fs = KaraFileSystem(
        target_protocol="http",
        target_options={"retries": 0},
        worker_hosts=f"127.0.0.1:{free_port()}",
        state_dir=str(tmp_path / "state"),
    )
    with RudeHttpServer({"d/a": b"a" * 10, "d/deep/b": b"b" * 10}) as server:
        yield fs, server
    fs.close()


def test_one_range_that_fails_does_not_hide_the_others(web: tuple[KaraFileSystem, RudeHttpServer]) -> None:
    fs, server = web
    a, b = f"{server.url}/d/a", f"{server.url}/d/deep/b"
    server.misbehave(Rudeness(), path="d/deep/b", times=1)  # it is found, and then
    server.misbehave(Rudeness(status=403), path="d/deep/b")
    first, denied, second = fs.cat_ranges([a, b, a], [0, 0, 5], [5, 5, 9])
    assert (first, second) == (b"aaaaa", b"aaaa")
    assert isinstance(denied, PermissionError)
    with pytest.raises(PermissionError):
        fs.cat_ranges([a, b], 0, 5, on_error="raise")


def test_a_listing_with_holes_is_an_error(web: tuple[KaraFileSystem, RudeHttpServer]) -> None:
    fs, server = web
    assert fs.find(f"{server.url}/d", maxdepth=2) == [f"{server.url}/d/a", f"{server.url}/d/deep/b"]
    server.misbehave(Rudeness(status=500), path="d/deep/")
    for walk in (lambda: list(fs.walk(f"{server.url}/d")), lambda: fs.find(f"{server.url}/d", maxdepth=2)):
        with pytest.raises(UnderStoreError):
            walk()
    errors: list[OSError] = []
    assert len(list(fs.walk(f"{server.url}/d", on_error=errors.append))) == 1
    assert len(errors) == 1
    server.behave()
    server.misbehave(Rudeness(status=403), path="d/deep/")
    assert fs.find(f"{server.url}/d", maxdepth=2) == [f"{server.url}/d/a"]
    with pytest.raises(PermissionError):
        list(fs.walk(f"{server.url}/d", on_error="raise"))


def test_dead_workers_are_not_asked_each_time(fs: KaraFileSystem, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    fs.cat(tmp_path / "a")
    before = fs.client.metrics.fallbacks
    for _ in range(5):
        assert fs.cat(tmp_path / "a") == b"content"
    assert fs.client.metrics.fallbacks == before


@pytest.mark.skipif(not CHAINS, reason="this fsspec knows no chains but its own")
@pytest.mark.parametrize("outer", ["", "simplecache::", "filecache::", "zip://a::"])
def test_other_filesystems_on_top(fs: KaraFileSystem, tmp_path: Path, outer: str) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"content")
    path = tmp_path / ("a.zip" if outer.startswith("zip") else "a")
    options = {key: value for key, value in fs.storage_options.items() if key != "target_protocol"}
    with fsspec.open(f"{outer}kara::file://{path}", kara=options) as file:
        assert file.read() == b"content"


def test_writes(fs: KaraFileSystem, tmp_path: Path) -> None:
    place = f"{tmp_path}/data"
    fs.makedirs(place)
    with fs.open(f"{place}/a", "wb") as file:
        file.write(b"content")
    fs.mv(f"{place}/a", f"{place}/b")
    assert (tmp_path / "data" / "b").read_bytes() == b"content"
    fs.rm(place, recursive=True)
    assert not (tmp_path / "data").exists()


def test_without_options_of_its_own_the_caller_is_told_who_failed(free_port: Callable[[], int]) -> None:
    port = free_port()
    fs = KaraFileSystem(worker_hosts=f"127.0.0.1:{port}")
    for ask in (fs.exists, fs.isdir, fs.isfile, fs.info, fs.cat, fs.find, lambda path: list(fs.walk(path))):
        with pytest.raises((WorkerUnavailable, UnderStoreError), match=str(port)):
            ask("data/a")
    fs.close()
