"""The local sides: what a save finds, what a load may write to, and where it keeps what is not finished."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.storage.objects.blob_digest import blob_of
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree
from kara_cache.storage.objects.partial_blob import PartialBlob
from kara_cache.storage.objects.source_tree import source_tree
from kara_cache.storage.objects.target_tree import TargetTree
from kara_cache.storage.objects.transfer_pool import TransferPool
from kara_cache.storage.objects.work_directory import WORK_DIRECTORY, WorkDirectory
from kara_cache.ufs.local import LocalStore
from kara_cache.ufs.local_writer import remove_abandoned

POOL = TransferPool(1, 1)


def tree_of(*names: str, empty: tuple[str, ...] = ()) -> ObjectTree:
    files = tuple(FileEntry(tuple(name.split("/")), blob_of(b"x")) for name in names)
    return ObjectTree(files, tuple(tuple(name.split("/")) for name in empty))


def names_below(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


# -- what a save finds


def test_source(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "f").chmod(0o640)
    (tmp_path / WORK_DIRECTORY).mkdir()
    (tmp_path / WORK_DIRECTORY / "lock").touch()
    found = source_tree(tmp_path)
    (file,) = found.files
    assert (file.path, file.size, file.mode) == (("a", "b", "f"), 5, 0o640)
    assert found.empty_directories == (("empty", "deep"),)


def test_links_are_followed(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    tree.mkdir()
    (outside / "f").write_bytes(b"1")
    (tree / "d").symlink_to(outside)
    (tree / "f").symlink_to(outside / "f")
    assert [file.path for file in source_tree(tree).files] == [("d", "f"), ("f",)]
    (tmp_path / "link").symlink_to(tree)
    assert len(source_tree(tmp_path / "link").files) == 2


def make_fifo(place: Path) -> None:
    os.mkfifo(place / "x")


def make_socket(place: Path) -> None:
    directory = os.open(place, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{directory}/x")
    finally:
        os.close(directory)


REFUSED = {
    "broken link": (lambda place: (place / "x").symlink_to("nowhere"), FileNotFoundError, "leads nowhere"),
    "link to itself": (lambda place: (place / "x").symlink_to("x"), OSError, "in a circle"),
    "link to the root": (lambda place: (place / "x").symlink_to("."), OSError, "in a circle"),
    "link above the root": (lambda place: (place / "x").symlink_to(".."), OSError, "in a circle"),
    "FIFO": (make_fifo, PermissionError, "neither a regular file"),
    "socket": (make_socket, PermissionError, "neither a regular file"),
    "backslashes": (lambda place: (place / "..\\x").touch(), FormatError, "backslash"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved(tmp_path: Path, case: str) -> None:
    make, error, words = REFUSED[case]
    place = tmp_path / "tree"
    place.mkdir()
    make(place)
    with pytest.raises(error, match=words) as caught:
        source_tree(place)
    if error is not FormatError:
        begins = (str(place / "x"), str(place / "x" / "tree"))  # not where the kernel has enough of a circle
        assert caught.value.filename in begins


def test_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        source_tree(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        source_tree(tmp_path / "nothing")


# -- what a load may write to


IN_THE_WAY = {
    "link in the place of a directory": ("a", "link", PermissionError),
    "link to a directory inside": ("a", "inside", PermissionError),
    "file in the place of a directory": ("a", "file", NotADirectoryError),
    "directory in the place of a file": ("a/f", "directory", IsADirectoryError),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_in_the_way(tmp_path: Path, case: str) -> None:
    name, kind, error = IN_THE_WAY[case]
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (target / "inner").mkdir(parents=True)
    place = target / name
    place.parent.mkdir(exist_ok=True)
    {
        "link": lambda: place.symlink_to(outside),
        "inside": lambda: place.symlink_to("inner"),
        "file": place.touch,
        "directory": place.mkdir,
    }[kind]()
    before = names_below(tmp_path)
    with pytest.raises(error, match=name):
        TargetTree(target).check(tree_of("a/f"), clear=False)
    assert names_below(tmp_path) == before
    if error is PermissionError:  # a link is never written through, and not taken away either
        with pytest.raises(error, match=name):
            TargetTree(target).check(tree_of("a/f"), clear=True)
        return
    tree = TargetTree(target)
    tree.check(tree_of("a/f"), clear=True)
    tree.make_directories(tree_of("a/f"), clear=True)
    assert names_below(target) == ["a", "inner"]


def test_a_target_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        with pytest.raises(NotADirectoryError, match=name):
            TargetTree(tmp_path / name).check(tree_of("f"), clear=True)


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "outside").write_bytes(b"x")
    (target / "f").symlink_to(tmp_path / "outside")
    tree, found = TargetTree(target), tree_of("f")
    tree.check(found, clear=False)
    assert tree.open_existing(found.files[0]) is None
    with WorkDirectory(str(target)) as work:
        os.close(work.open("new", os.O_CREAT | os.O_WRONLY))
        tree.place(work, "new", found.files[0])
        work.remove()
    assert (tmp_path / "outside").read_bytes() == b"x"
    assert not (target / "f").is_symlink()
    assert names_below(target) == ["f"]


def test_unrelated_files(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "keep").touch()
    for name in ("a/f", "a/g", "old/deep/f", "new"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()
    (target / "empty").mkdir()
    (target / "unwanted").mkdir()
    (target / "link").symlink_to(outside)
    (target / "a" / "broken").symlink_to("nowhere")
    with WorkDirectory(str(target)):
        assert TargetTree(target).delete_unrelated(tree_of("a/f", empty=("empty",))) == 8
        assert (target / WORK_DIRECTORY / "lock").exists()
    assert names_below(outside) == ["keep"]
    assert names_below(target) == [".kara-load", ".kara-load/lock", "a", "a/f", "empty"]


def test_special_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    assert TargetTree(tmp_path).open_existing(FileEntry(("f",), blob_of(b""))) is None


# -- where a load keeps what is not finished


def test_one_load_at_a_time(tmp_path: Path) -> None:
    with WorkDirectory(str(tmp_path)) as first:
        with pytest.raises(BlockingIOError, match="another load"):
            WorkDirectory(str(tmp_path))
        first.remove()
    with WorkDirectory(str(tmp_path)) as second:
        second.remove()
    assert names_below(tmp_path) == []


def test_what_is_not_ours_is_kept(tmp_path: Path) -> None:
    with WorkDirectory(str(tmp_path)) as work:
        (Path(work.path) / "notes").touch()
        (Path(work.path) / f"{blob_of(b'').name}.part").touch()
        work.remove()
    assert names_below(tmp_path) == [WORK_DIRECTORY, f"{WORK_DIRECTORY}/notes"]


def test_a_work_directory_that_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / WORK_DIRECTORY).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError) as caught:
        WorkDirectory(str(target))
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert names_below(tmp_path / "outside") == []


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(0, 20)), st.integers(1, 20))
def test_a_partial_blob_goes_on_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, first: list[int], part_bytes: int
) -> None:
    target = str(tmp_path_factory.mktemp("partial"))
    blob = blob_of(data)
    view = memoryview(data)
    with WorkDirectory(target) as work:
        arriving = PartialBlob(work, blob, part_bytes=part_bytes)
        assert not arriving.resumed
        taken = {index for index in first if index in arriving.missing()}
        complete = [arriving.put(index, view[slice(*arriving.span(index))]) for index in sorted(taken)]
        arriving.close()

        again = PartialBlob(work, blob, part_bytes=part_bytes)
        assert again.resumed == bool(taken)
        missing = again.missing()
        assert taken.isdisjoint(missing)
        assert any(complete) == (not missing)
        last = [again.put(index, view[slice(*again.span(index))]) for index in missing]
        assert not missing or last == [False] * (len(missing) - 1) + [True]
        assert again.digest(POOL) == blob
        again.discard()
        work.remove()
    assert os.listdir(target) == []


DAMAGED = {
    "empty": b"",
    "of another size": b"KLP1" + (4).to_bytes(4, "little") + (99).to_bytes(8, "little") + b"\1" * 25,
    "of other parts": b"KLP1" + (5).to_bytes(4, "little") + (8).to_bytes(8, "little") + b"\1\1",
    "too long": b"KLP1" + (4).to_bytes(4, "little") + (8).to_bytes(8, "little") + b"\1\1\1",
    "too short": b"KLP1" + (4).to_bytes(4, "little") + (8).to_bytes(8, "little") + b"\1",
    "rubbish": b"x" * 18,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_journal_begins_anew(tmp_path: Path, case: str) -> None:
    blob = blob_of(b"12345678")
    with WorkDirectory(str(tmp_path)) as work:
        (Path(work.path) / f"{blob.name}.done").write_bytes(DAMAGED[case])
        arriving = PartialBlob(work, blob, part_bytes=4)
        assert (arriving.missing(), arriving.resumed) == ([0, 1], False)
        arriving.close()
    # and a good one is believed
    good = b"KLP1" + (4).to_bytes(4, "little") + (8).to_bytes(8, "little") + b"\0\1"
    with WorkDirectory(str(tmp_path)) as work:
        (Path(work.path) / f"{blob.name}.done").write_bytes(good)
        arriving = PartialBlob(work, blob, part_bytes=4)
        assert (arriving.missing(), arriving.resumed) == ([0], True)
        arriving.close()


# -- what killed writers leave in a store's directory


def test_abandoned_files(tmp_path: Path) -> None:
    store = LocalStore.from_url(f"file://{tmp_path}", {})
    living = store.open_writer("living")
    left = tmp_path / f".kara-tmp-{'0' * 16}"
    left.touch()
    (tmp_path / ".kara-tmp-notes").touch()
    (tmp_path / f".kara-tmp-{'1' * 16}").symlink_to("living")
    assert remove_abandoned(str(tmp_path)) == 1
    assert not left.exists()
    living.write(b"whole")
    living.commit()
    assert (tmp_path / "living").read_bytes() == b"whole"
    assert remove_abandoned(str(tmp_path / "nothing")) == 0


def test_blob_names() -> None:
    assert Blob("0" * 32, "1" * 40, 3).name == f"{'0' * 32}_{'1' * 40}"
