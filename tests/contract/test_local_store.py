"""What only a directory can do to a reader: links, special files, overwriting in place."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs import open_store
from kara_cache.ufs.local import LocalStore
from kara_cache.ufs.root_directory import MAX_LINKS, RootDirectory


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"outside")
    return tmp_path / "outside"


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "file").write_bytes(b"inside")
    return tmp_path / "tree"


@pytest.fixture
def store(root: Path) -> Iterator[LocalStore]:
    store = LocalStore(str(root))
    yield store
    store.close()


def read(store: LocalStore, path: str, *, version: str | None = None) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: store.read_into(path, 0, memoryview(buffer), version=version)])


def names(store: LocalStore, path: str = "", *, recursive: bool = True) -> list[str]:
    return [entry.path for entry in store.list(path, recursive=recursive)]


INSIDE = {
    "relative": ("link", "d/file"),
    "relative with up": ("d/link", "../d/file"),
    "absolute": ("link", "{root}/d/file"),
    "absolute with up": ("link", "{root}/d/../d/file"),
    "dots and slashes": ("link", ".//d/./file"),
}
LEAVING = {
    "absolute": ("link", "{outside}/file"),
    "relative": ("link", "../outside/file"),
    "up and back in": ("link", "../tree/d/file"),
    "deep up": ("d/link", "../../outside/file"),
    "sibling with our name as prefix": ("link", "{root}-sibling/file"),
    "absolute, up from the root": ("link", "{root}/../outside/file"),
    "proc": ("link", "/proc/self/environ"),
}


@pytest.mark.parametrize("case", INSIDE)
def test_link_inside_the_root(store: LocalStore, root: Path, case: str) -> None:
    name, target = INSIDE[case]
    (root / name).symlink_to(target.format(root=root))
    assert read(store, name) == b"inside"
    assert store.info(name).version == store.info("d/file").version
    assert sorted(names(store)) == sorted(["d/file", name])


@pytest.mark.parametrize("case", LEAVING)
def test_link_out_of_the_root(store: LocalStore, root: Path, outside: Path, case: str) -> None:
    Path(f"{root}-sibling").mkdir()
    Path(f"{root}-sibling", "file").write_bytes(b"outside")
    name, target = LEAVING[case]
    (root / name).symlink_to(target.format(root=root, outside=outside))
    calls: list[Callable[[], object]] = [
        lambda: store.info(name),
        lambda: read(store, name),
        lambda: names(store, name),
        lambda: store.write(name, b"x"),
    ]
    for call in calls:
        with pytest.raises(PermissionError, match="leads out"):
            call()
    assert names(store) == ["d/file"]
    assert (outside / "file").read_bytes() == b"outside"


def test_directory_link_out_of_the_root(store: LocalStore, root: Path, outside: Path) -> None:
    (root / "link").symlink_to(outside)
    calls: list[Callable[[], object]] = [
        lambda: read(store, "link/file"),
        lambda: names(store, "link"),
        lambda: store.write("link/new", b"x"),
        lambda: store.delete("link/file"),
        lambda: store.make_directory("link/new"),
    ]
    for call in calls:
        with pytest.raises(PermissionError, match="leads out"):
            call()
    assert os.listdir(outside) == ["file"]


def test_directory_link_inside_the_root(store: LocalStore, root: Path) -> None:
    (root / "link").symlink_to("d")
    assert read(store, "link/file") == b"inside"
    assert names(store) == ["d/file", "link/file"]
    assert [(entry.path, entry.is_dir) for entry in store.list("")] == [("d", True), ("link", True)]
    store.write("link/new", b"x")
    assert (root / "d" / "new").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["..", ".", "{root}", "loop"])
def test_link_loop_ends(store: LocalStore, root: Path, target: str) -> None:
    (root / "d" / "loop").symlink_to(target.format(root=root))
    assert names(store) == ["d/file"]


def test_as_many_links_as_the_kernel_follows(store: LocalStore, root: Path) -> None:
    (root / "0").symlink_to("d/file")
    for i in range(1, MAX_LINKS + 1):
        (root / str(i)).symlink_to(str(i - 1))
    assert read(store, str(MAX_LINKS - 1)) == b"inside"
    with pytest.raises(FileNotFoundError, match="symbolic links"):
        read(store, str(MAX_LINKS))


def test_name_that_became_a_link_since_it_was_judged(store: LocalStore, root: Path, outside: Path) -> None:
    with RootDirectory(str(root)).entry("d/file") as entry:
        (root / "d" / "file").unlink()
        (root / "d" / "file").symlink_to(outside / "file")
        with pytest.raises(OSError) as caught:
            entry.open(os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP


def test_delete_removes_the_link_and_not_its_target(store: LocalStore, root: Path) -> None:
    (root / "link").symlink_to("d")
    store.delete("link")
    assert names(store) == ["d/file"]


def test_writing_to_a_link_keeps_the_link(store: LocalStore, root: Path) -> None:
    (root / "latest").symlink_to("d/file")
    store.write("latest", b"new")
    assert (root / "latest").is_symlink()
    assert read(store, "d/file") == b"new"


def test_directory_swapped_for_a_link_while_we_walk(store: LocalStore, root: Path, outside: Path) -> None:
    (root / "out").symlink_to(outside)
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        for _ in range(300):
            os.rename(root / "d", root / "real")
            os.rename(root / "out", root / "d")
            os.rename(root / "d", root / "out")
            os.rename(root / "real", root / "d")
            swaps += 1

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        while swapping.is_alive():
            with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                assert read(store, "d/file") == b"inside"
    finally:
        swapping.join(timeout=30)
    assert swaps == 300


@pytest.mark.parametrize("kind", ["fifo", "socket", "link to device"])
def test_special_file_is_refused_and_not_listed(store: LocalStore, root: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(root / "special")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.path.relpath(root / "special"))
    else:
        (root / "special").symlink_to("/dev/zero")
    calls: list[Callable[[], object]] = [
        lambda: store.info("special"),
        lambda: read(store, "special"),
    ]
    for call in calls:
        with pytest.raises(PermissionError):
            call()
    assert names(store) == ["d/file"]


def test_listing_looks_at_files_as_it_advances(store: LocalStore, root: Path) -> None:
    for i in range(600):
        (root / f"{i:03}").touch()
    entries = store.list("")
    assert next(entries).path == "000"
    (root / "599").unlink()
    assert [entry.path for entry in entries] == [*(f"{i:03}" for i in range(1, 599)), "d"]


def test_directory_that_may_not_be_searched_is_no_empty_one(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_args: Any, **_more: Any) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    entries = store.list("")
    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(PermissionError):
        list(entries)


# -- versions


def test_overwritten_with_the_same_size_and_mtime(store: LocalStore, root: Path) -> None:
    before = store.info("d/file")
    status = (root / "d" / "file").stat()
    (root / "d" / "file").write_bytes(b"edisni")
    os.utime(root / "d" / "file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.info("d/file").mtime == before.mtime
    with pytest.raises(StaleVersion, match=before.version):
        read(store, "d/file", version=before.version)


@pytest.mark.parametrize("change", ["overwrite", "truncate", "append"])
@pytest.mark.parametrize("pinned", [True, False])
def test_changed_in_place_while_it_is_read(store: LocalStore, root: Path, change: str, pinned: bool) -> None:
    path = root / "big"
    path.write_bytes(b"a" * 1_000_000)
    reported: list[int] = []

    def change_it(valid: int) -> None:
        reported.append(valid)
        if change == "overwrite":
            path.write_bytes(b"b" * 1_000_000)
        elif change == "truncate":
            os.truncate(path, 300_000)
        else:
            with path.open("ab") as file:
                file.write(b"c")

    with pytest.raises(StaleVersion, match="changed while"):
        store.read_into(
            "big",
            0,
            memoryview(bytearray(1_000_000)),
            version=store.info("big").version if pinned else None,
            progress=change_it,
        )
    assert len(reported) == 1


def test_replaced_by_rename_while_it_is_read(store: LocalStore) -> None:
    store.write("big", b"a" * 1_000_000)
    buffer = bytearray(1_000_000)
    store.read_into("big", 0, memoryview(buffer), progress=lambda _: store.write("big", b"b"))
    assert buffer == b"a" * 1_000_000


# -- writing


def test_abandoned_writer_is_hidden(store: LocalStore, root: Path) -> None:
    writer = store.open_writer("d/new")
    writer.write(b"x")
    assert len(os.listdir(root / "d")) == 2
    assert names(store) == ["d/file"]
    writer.abort()
    assert os.listdir(root / "d") == ["file"]


def test_abort_removes_the_directories_that_were_made_for_it(store: LocalStore, root: Path) -> None:
    writer = store.open_writer("x/y/z")
    assert (root / "x" / "y").is_dir()
    writer.abort()
    assert os.listdir(root) == ["d"]
    with pytest.raises(IsADirectoryError):
        store.open_writer("d")
    with pytest.raises(FileNotFoundError):
        store.open_writer("x/y/" + "n" * 300)
    assert os.listdir(root) == ["d"]


def test_write_keeps_the_mode(store: LocalStore, root: Path) -> None:
    (root / "d" / "file").chmod(0o640)
    store.write("d/file", b"new")
    assert stat.S_IMODE((root / "d" / "file").stat().st_mode) == 0o640


def test_write_is_on_disk_before_and_after_the_rename(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def record_sync(fd: int) -> None:
        calls.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        sync(fd)

    def record_rename(*args: Any, **more: Any) -> None:
        calls.append("rename")
        rename(*args, **more)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    store.write("d/new", b"x")
    assert calls == ["sync file", "rename", "sync directory"]


def test_append_to_a_file_that_changed_meanwhile(store: LocalStore, root: Path) -> None:
    writer = store.open_writer("d/file", append=True)
    writer.write(b" more")
    (root / "d" / "file").write_bytes(b"changed")
    with pytest.raises(StaleVersion):
        writer.commit()
    writer.abort()
    assert read(store, "d/file") == b"changed"
    assert os.listdir(root / "d") == ["file"]


# -- the root


def test_root_that_is_not_there_fails_and_is_not_made_by_a_write(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "not-mounted"))
    calls: list[Callable[[], object]] = [
        lambda: store.info(""),
        lambda: store.write("a/b", b"x"),
        lambda: store.make_directory("a"),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError, match="not-mounted"):
            call()
    assert not (tmp_path / "not-mounted").exists()
    store.make_directory("")
    assert store.write("a/b", b"x").size == 1


def test_root_that_is_a_link_is_the_operators_choice(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    store = LocalStore(str(tmp_path / "alias"))
    (root / "absolute").symlink_to(root / "d" / "file")
    assert read(store, "absolute") == b"inside"
    assert names(store) == ["absolute", "d/file"]


@pytest.mark.parametrize(
    "url", ["file://{root}", "local://{root}", "{root}", "file://localhost{root}", "file://{root}/"]
)
def test_spellings_of_the_root(root: Path, url: str) -> None:
    store = open_store(url.format(root=root))
    assert store.info("d/file").size == 6
    assert store.url == f"file://{root}"


@pytest.mark.parametrize("url", ["file://relative", "relative", "file://", "file://host/share"])
def test_root_that_is_no_absolute_path(url: str) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        open_store(url)


def test_unknown_option(root: Path) -> None:
    with pytest.raises(ConfigError, match="auto_mkdir"):
        open_store(f"file://{root}", {"auto_mkdir": True})


def test_name_that_is_no_text(store: LocalStore, root: Path) -> None:
    with open(os.fsencode(root) + b"/d/\xff\xfe", "wb") as file:
        file.write(b"bytes")
    (name,) = [name for name in names(store) if name != "d/file"]
    assert read(store, name) == b"bytes"


def test_fault_of_the_disk_is_no_answer(
    store: LocalStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(UnderStoreError, match="d/file") as caught:
        read(store, "d/file")
    assert caught.value.errno == 5


def test_no_descriptor_is_left_open(store: LocalStore, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    (root / "out").symlink_to("/etc")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("d/file", "d", "loop", "out/passwd", "missing/x", "d/file/x"):
        for call in (
            store.info,
            lambda path: read(store, path),
            lambda path: next(store.list(path, recursive=True)),
        ):
            with suppress(OSError):
                call(path)
    writer = store.open_writer("d/new", append=True)
    writer.abort()
    assert len(os.listdir("/proc/self/fd")) == before
