"""No worker can be reached: a caller with options of its own for the store reads and writes all the same."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from kara_cache.errors import UnderStoreError, WorkerUnavailable
from kara_cache.filesystem import KaraFileSystem


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
    options = {key: value for key, value in fs.storage_options.items() if key != "target_protocol"}
    with fsspec.open(f"kara::file://{a}", kara=options) as file:
        assert file.read() == b"one\ntwo\n"
    with pytest.raises(FileNotFoundError):
        fs.cat(f"{tmp_path}/none")


@pytest.mark.parametrize("outer", ["simplecache", "filecache", "zip://a"])
def test_other_filesystems_on_top(fs: KaraFileSystem, tmp_path: Path, outer: str) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"content")
    path = tmp_path / ("a.zip" if outer == "zip://a" else "a")
    options = {key: value for key, value in fs.storage_options.items() if key != "target_protocol"}
    with fsspec.open(f"{outer}::kara::file://{path}", kara=options) as file:
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
