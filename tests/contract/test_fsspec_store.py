"""File systems of fsspec that differ, fail or lie."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs import open_store
from kara_cache.ufs.fsspec import FsspecStore
from kara_cache.ufs.fsspec_info import version_of

DATA = bytes(range(256)) * 4


class ScriptedFileSystem(MemoryFileSystem):
    """fsspec's memory, with a script for the next calls of `cat_file` and `info`."""

    protocol = "scripted"
    store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012
    cats: list[Callable[[bytes], bytes]] = []  # noqa: RUF012
    hidden: tuple[str, ...] = ()  # keys that `info` leaves out
    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("scripted://", "memory://"))
        return stripped

    def cat_file(  # the signature of s3fs, where the second position is a version
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None
    ) -> bytes:
        assert version_id is None
        self.seen.append(f"cat {start}-{end}")
        data: bytes = super().cat_file(path, start=start, end=end)
        return self.cats.pop(0)(data) if self.cats else data

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        self.seen.append("info")
        found: dict[str, Any] = super().info(path, **more)
        return {key: value for key, value in found.items() if key not in self.hidden}

    def modified(self, path: str) -> Any:
        if "created" in self.hidden:
            raise NotImplementedError
        return super().modified(path)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedFileSystem]:
    fsspec.register_implementation("scripted", ScriptedFileSystem, clobber=True)
    monkeypatch.setattr(ScriptedFileSystem, "store", {})
    monkeypatch.setattr(ScriptedFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(ScriptedFileSystem, "cats", [])
    monkeypatch.setattr(ScriptedFileSystem, "seen", [])
    ScriptedFileSystem(skip_instance_cache=True).pipe_file("/bucket/a", DATA)
    return ScriptedFileSystem


@pytest.fixture
def store(system: type[ScriptedFileSystem]) -> Iterator[FsspecStore]:
    with closing(FsspecStore("scripted://bucket", {})) as store:
        yield store


def read(store: FsspecStore, start: int = 100, length: int = 50, *, version: str | None = None) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: store.read_into("a", start, memoryview(buffer), version=version)])


def overwrite(data: bytes) -> bytes:
    ScriptedFileSystem(skip_instance_cache=True).pipe_file("/bucket/a", DATA[::-1])
    return data


def fail(data: bytes) -> bytes:
    class BackendError(Exception):
        pass

    raise BackendError("throttled")


def test_range_goes_by_keyword_and_one_look_proves_the_version(
    store: FsspecStore, system: type[ScriptedFileSystem]
) -> None:
    version = store.info("a").version
    system.seen.clear()
    assert read(store, version=version) == DATA[100:150]
    assert system.seen == ["cat 100-150", "info"]


@pytest.mark.parametrize("pinned", [True, False])
def test_overwritten_during_the_read(
    store: FsspecStore, system: type[ScriptedFileSystem], pinned: bool
) -> None:
    version = store.info("a").version if pinned else None
    system.cats.append(overwrite)
    with pytest.raises(StaleVersion):
        read(store, version=version)


def test_nothing_to_compare(
    store: FsspecStore, system: type[ScriptedFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "hidden", ("created",))
    monkeypatch.setattr(system, "modified", fsspec.AbstractFileSystem.modified)
    assert store.info("a").version == ""
    assert read(store, version="") == DATA[100:150]


@pytest.mark.parametrize("lie", [b"", b"short", DATA])
def test_wrong_number_of_bytes(store: FsspecStore, system: type[ScriptedFileSystem], lie: bytes) -> None:
    system.cats.append(lambda _: lie)
    assert read(store) == DATA[100:150]
    system.cats.extend([lambda _: lie] * 3)
    with pytest.raises(UnderStoreError, match=rf"asked for 50 bytes at 100, got {len(lie)} \(3 attempts"):
        read(store)


def test_end_that_ossfs_takes_for_inclusive(store: FsspecStore, system: type[ScriptedFileSystem]) -> None:
    system.cats.extend([lambda data: data + b"!"] * 3)
    with pytest.raises(UnderStoreError, match="got 51"):
        read(store)


def test_error_that_only_the_backend_knows(store: FsspecStore, system: type[ScriptedFileSystem]) -> None:
    system.cats.extend([fail] * 2)
    assert read(store) == DATA[100:150]
    system.cats.extend([fail] * 3)
    with pytest.raises(UnderStoreError, match=r"scripted://bucket/a.*BackendError.*throttled") as caught:
        read(store)
    assert type(caught.value.__cause__).__name__ == "BackendError"


def test_range_behind_the_end_that_the_backend_refuses(
    store: FsspecStore, system: type[ScriptedFileSystem]
) -> None:
    system.cats.append(fail)
    assert read(store, start=5000) == b""


def test_zip_on_a_disk_is_read_only(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("d/a", DATA)
        archive.writestr("b", b"")
    with closing(open_store(f"zip://::file://{tmp_path}/x.zip")) as store:
        info = store.info("d/a")
        assert (info.size, bool(info.version)) == (len(DATA), True)
        buffer = bytearray(10)
        assert store.read_into("d/a", 5, memoryview(buffer), version=info.version) == 10
        assert buffer == DATA[5:15]
        assert [entry.path for entry in store.list("", recursive=True)] == ["b", "d/a"]
        with pytest.raises(io.UnsupportedOperation):
            store.delete("b")


def test_large_upload_comes_from_disk(
    store: FsspecStore, system: type[ScriptedFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kara_cache.ufs.fsspec_writer._PIPE_BYTES", 100)
    with store.open_writer("big") as writer:
        writer.write(DATA)
        assert writer.commit().size == len(DATA)
    assert system(skip_instance_cache=True).cat_file("/bucket/big") == DATA


def test_rename_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FsspecStore(f"file://{tmp_path}", {})

    def broken(*_args: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.mv", broken)
    with pytest.raises(UnderStoreError, match="No space left"):
        store.write("a", DATA)
    assert list(tmp_path.iterdir()) == []


def test_password_is_not_shown(system: type[ScriptedFileSystem]) -> None:
    store = FsspecStore("scripted://user:hunter2@bucket", {})
    with pytest.raises(FileNotFoundError) as caught:
        store.info("missing")
    for text in (store.url, repr(store), str(caught.value)):
        assert "hunter2" not in text


def test_nested_options_are_not_changed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", DATA)
    options: dict[str, Any] = {"file": {"auto_mkdir": False}, "zip": {"mode": "r"}}
    with closing(open_store(f"zip://::file://{tmp_path}/x.zip", options)) as store:
        assert store.info("a").size == len(DATA)
    assert options == {"file": {"auto_mkdir": False}, "zip": {"mode": "r"}}


def test_wrong_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zip://"):
        open_store(f"zip://::file://{tmp_path}/missing.zip", {"zip": {"mode": "sideways"}})


@pytest.mark.parametrize(
    ("found", "version"),
    [
        ({"ETag": '"abc"', "LastModified": 1}, "ETag:abc:9"),
        ({"etag": "abc", "md5Hash": "x"}, "etag:abc:9"),
        ({"md5Hash": "x", "generation": "5"}, "md5Hash:x:9"),
        ({"generation": "5", "updated": "2024-01-01T00:00:00Z"}, "generation:5:9"),
        ({"ino": 77}, "modified:1.5:9:77"),
        ({}, "modified:1.5:9:"),
    ],
)
def test_version_of(found: dict[str, Any], version: str) -> None:
    assert version_of(found, 1.5, 9) == version


def test_version_of_nothing() -> None:
    assert version_of({"name": "x", "ETag": ""}, None, 9) == ""
