"""The fsspec face, what is changed through it, over a real worker."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
from fsspec.callbacks import Callback, TqdmCallback
from mounted import Mounted, mounted

from kara_cache.filesystem import KaraFileSystem


@pytest.fixture(scope="module")
def kara(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("writes")) as found:
        yield found


@pytest.fixture
def fs(kara: Mounted) -> KaraFileSystem:
    return kara.filesystem()


@pytest.fixture
def place(kara: Mounted, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """An empty directory of the test's own: its name in the file system, and on the disk behind."""
    name = re.sub(r"\W+", "-", request.node.name)
    directory = kara.directory / name
    directory.mkdir()
    return f"data/{name}", directory


def test_a_write_is_seen_at_once(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, directory = place
    for data in (b"first", b"the second", b""):
        with fs.open(f"{name}/f", "wb") as file:
            assert file.write(data) == len(data)
            assert file.tell() == len(data)
        assert fs.cat(f"{name}/f") == (directory / "f").read_bytes() == data
    fs.pipe({f"{name}/g": b"g", f"kara://{name}/h": memoryview(b"h")})
    assert fs.cat([f"{name}/g", f"{name}/h"]) == {f"{name}/g": b"g", f"{name}/h": b"h"}
    assert fs.write(f"{name}/g", b"again") is fs.upload_data(f"{name}/h", b"again") is True
    assert fs.read(f"{name}/g") == fs.read(f"{name}/h") == b"again"


def test_large_files_in_small_writes(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, directory = place
    piece = bytes(range(256)) * 40
    with fs.open(f"{name}/big", "wb") as file:
        for _ in range(500):
            file.write(piece)
    assert (directory / "big").read_bytes() == piece * 500


def test_modes(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, _ = place
    with fs.open(f"{name}/f", "xb") as file:
        file.write(b"one")
    with pytest.raises(FileExistsError):
        fs.open(f"{name}/f", "xb")
    with fs.open(f"{name}/f", "ab") as file:
        file.write(b" two")
    assert fs.cat(f"{name}/f") == b"one two"
    with fs.open(f"{name}/t.gz", "wt", compression="infer", encoding="utf-8") as text:
        text.write("gepäckt\n")
    with fs.open(f"{name}/t.gz", "rt", compression="infer", encoding="utf-8") as text:
        assert text.read() == "gepäckt\n"
    with pytest.raises(FileExistsError):
        fs.pipe_file(f"{name}/f", b"", mode="create")


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("mode", ["wb", "wt"])
def test_an_exception_leaves_the_file_as_it_was(
    kara: Mounted, place: tuple[str, Path], mode: str, compression: str | None
) -> None:
    name, _ = place
    fs = kara.filesystem()
    fs.pipe(f"{name}/f", b"before")
    content = b"partial" if mode == "wb" else "partial"

    def fail(opened: AbstractContextManager[IO[Any]]) -> None:
        with opened as file:
            file.write(content)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail(fs.open(f"{name}/f", mode, compression=compression))
    with pytest.raises(RuntimeError, match="on purpose"):
        fail(fsspec.open(f"kara://{name}/f", mode, compression=compression, **kara.options))
    assert fs.cat(f"{name}/f") == b"before"
    assert fs.ls(name, detail=False) == [f"{name}/f"]


def test_a_write_inside_an_exception_handler_is_a_write(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, _ = place
    try:
        raise RuntimeError("on purpose")
    except RuntimeError:
        with fs.open(f"{name}/f", "w") as file:
            file.write("whole")
    assert fs.cat(f"{name}/f") == b"whole"


def test_a_file_nobody_closed_is_not_written(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, _ = place
    file = fs.open(f"{name}/f", "wb")
    file.write(b"partial")
    with pytest.warns(ResourceWarning, match="never closed"):
        file.__del__()
    assert not fs.exists(f"{name}/f")
    with pytest.raises(ValueError, match="closed file"):
        file.write(b"more")


def test_transactions(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, _ = place
    with fs.transaction:
        with fs.open(f"{name}/a", "wb") as file:
            file.write(b"a")
        fs.pipe(f"{name}/b", b"b")
        assert fs.ls(name) == []
    assert fs.cat([f"{name}/a", f"{name}/b"]) == {f"{name}/a": b"a", f"{name}/b": b"b"}

    def fail() -> None:
        with fs.transaction:
            fs.pipe(f"{name}/a", b"never")
            fs.pipe(f"{name}/c", b"never")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert fs.cat(f"{name}/a") == b"a"
    assert not fs.exists(f"{name}/c")


def test_directories(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, directory = place
    fs.makedirs(f"{name}/a/b")
    assert (directory / "a" / "b").is_dir()
    fs.makedirs(f"{name}/a/b", exist_ok=True)
    for make in (fs.makedirs, fs.mkdir):
        with pytest.raises(FileExistsError):
            make(f"{name}/a/b")
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{name}/x/y", create_parents=False)
    fs.touch(f"{name}/a/f")
    with pytest.raises(NotADirectoryError):
        fs.rmdir(f"{name}/a/f")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(f"{name}/a")
    fs.rmdir(f"{name}/a/b")
    assert not (directory / "a" / "b").exists()


def test_touch(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, _ = place
    fs.touch(f"{name}/f", truncate=False)
    assert fs.size(f"{name}/f") == 0
    fs.pipe(f"{name}/f", b"content")
    with pytest.raises(NotImplementedError, match="time"):
        fs.touch(f"{name}/f", truncate=False)
    fs.touch(f"{name}/f")
    assert fs.cat(f"{name}/f") == b""


def test_removal(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, directory = place
    fs.pipe({f"{name}/a/b/{i}": b"" for i in range(40)})
    fs.makedirs(f"{name}/a/empty")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{name}/a")
    fs.rm([f"{name}/a/b/0", f"{name}/a/b/1"])
    fs.rm(f"{name}/a/b/1*")
    assert len(fs.find(name)) == 28
    fs.rm(f"{name}/a", recursive=True)
    assert os.listdir(directory) == []
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{name}/a")
    fs.touch(f"{name}/f")
    for whole in ("data", "/"):
        with pytest.raises(PermissionError, match="whole mount"):
            fs.rm(whole, recursive=True)
    assert fs.exists(f"{name}/f")


def test_copies_and_moves(fs: KaraFileSystem, place: tuple[str, Path]) -> None:
    name, _ = place
    fs.pipe(f"{name}/a", b"content")
    assert fs.copy(f"{name}/a", f"{name}/b") is True
    assert fs.move(f"{name}/b", f"{name}/c") is True
    assert fs.rename(f"{name}/c", f"{name}/d") is True
    assert fs.find(name) == [f"{name}/a", f"{name}/d"]
    assert fs.cat(f"{name}/d") == b"content"
    fs.mv(f"kara://{name}/d", f"/{name}/d")
    fs.cp_file(f"{name}/d", f"kara:///{name}/d")
    assert fs.cat(f"{name}/d") == b"content"


class Steps(Callback):
    """What a progress bar is told."""

    def __init__(self) -> None:
        super().__init__()
        self.branches: list[Steps] = []

    def branched(self, path_1: str, path_2: str, **kwargs: object) -> Steps:
        self.branches.append(Steps())
        return self.branches[-1]


def test_get_and_put_tell_their_progress(fs: KaraFileSystem, place: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = place
    fs.pipe({f"{name}/a": b"a" * 10, f"{name}/b": b"b" * 20})
    steps = Steps()
    fs.get([f"{name}/a", f"{name}/b"], [str(tmp_path / "a"), str(tmp_path / "b")], callback=steps)
    assert (steps.size, steps.value) == (2, 2)
    assert [(step.size, step.value) for step in steps.branches] == [(10, 10), (20, 20)]
    fs.put(str(tmp_path / "b"), f"{name}/c", callback=TqdmCallback())
    assert fs.cat(f"{name}/c") == b"b" * 20
    assert fs.upload(str(tmp_path / "a"), f"{name}/d") is True
    assert fs.download(f"{name}/d", str(tmp_path / "new" / "d")) == 10
    assert (tmp_path / "new" / "d").read_bytes() == b"a" * 10


class Interrupt(Callback):
    def relative_update(self, inc: int = 1) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_get_leaves_what_was_there(
    fs: KaraFileSystem, place: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = place
    fs.pipe(f"{name}/f", b"new")
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        fs.get_file(f"{name}/f", str(tmp_path / "f"), callback=Interrupt())
    with pytest.raises(KeyboardInterrupt):
        fs.get_file(f"{name}/f", str(tmp_path / "g"), callback=Interrupt())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"f": b"old"}


def test_get_follows_links_and_writes_into_devices(
    fs: KaraFileSystem, place: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = place
    fs.pipe(f"{name}/f", b"new")
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    fs.get_file(f"{name}/f", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    fs.get_file(f"{name}/f", os.devnull)
    assert not os.path.isfile(os.devnull)
    with (tmp_path / "open").open("w+b") as out:
        fs.get_file(f"{name}/f", out)
        fs.get_file(f"{name}/f", outfile=out)
    assert (tmp_path / "open").read_bytes() == b"newnew"


def test_an_interrupted_put_leaves_what_was_there(
    fs: KaraFileSystem, place: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = place
    fs.pipe(f"{name}/f", b"old")
    (tmp_path / "f").write_bytes(b"new")
    with pytest.raises(KeyboardInterrupt):
        fs.put_file(str(tmp_path / "f"), f"{name}/f", callback=Interrupt())
    assert fs.cat(f"{name}/f") == b"old"
