"""Version files: what is written is read again, and what leads elsewhere is not."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.storage.objects.blob_digest import BlobDigest, blob_of
from kara_cache.storage.objects.object_tree import FileEntry, ObjectTree
from kara_cache.storage.objects.version_file import decode_tree, encode_tree

BLOB = blob_of(b"content")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0\\"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..", ".kara-load")
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(tuple)


def entry(**changes: Any) -> dict[str, Any]:
    """As the published package writes it."""
    document = {"md5": BLOB.md5, "sha1": BLOB.sha1, "file": BLOB.name, "path": ["a", "b"], "size": 7}
    return {**document, **changes}


def decode(*entries: Any) -> ObjectTree:
    return decode_tree(json.dumps(entries).encode(), "here")


@given(
    st.dictionaries(
        PATHS, st.tuples(st.binary(max_size=30), st.integers(0, 0o777), st.integers(-(1 << 62), 1 << 62))
    ),
    st.lists(PATHS),
)
def test_what_is_written_is_read(files: dict[tuple[str, ...], Any], empty: list[tuple[str, ...]]) -> None:
    paths = set(files)
    parents = {path[:depth] for path in paths for depth in range(1, len(path))}
    alone = {path for path in empty if not any(path[:i] in paths for i in range(1, len(path) + 1))}
    tree = ObjectTree(
        tuple(
            FileEntry(path, blob_of(data), mode, mtime)
            for path, (data, mode, mtime) in sorted(files.items())
            if path not in parents and path not in {a[:i] for a in alone for i in range(1, len(a) + 1)}
        ),
        tuple(sorted(alone - parents)),
    )
    if any(
        file.path[:i] == other.path
        for file in tree.files
        for other in tree.files
        for i in range(1, len(file.path))
    ):
        return
    found = decode_tree(encode_tree(tree), "here")
    assert found.files == tree.files
    assert found.empty_directories == (tree.empty_directories if tree.files else ())


def test_an_entry_of_the_published_package() -> None:
    (file,) = decode(entry()).files
    assert (file.name, file.blob, file.mode, file.mtime_ns) == ("a/b", BLOB, None, None)


def test_keys_of_others_are_passed_over() -> None:
    assert decode(entry(owner="root", xattrs={"a": 1})).files == decode(entry()).files


def test_names_that_are_not_utf8_survive() -> None:
    tree = ObjectTree((FileEntry(("caf\udce9",), BLOB),))
    assert decode_tree(encode_tree(tree), "here") == tree


def test_dangerous_permissions_are_not_believed() -> None:
    assert decode(entry(mode=0o104755)).files[0].mode == 0o755


def test_directories() -> None:
    tree = decode(entry(path=["a", "b", "c"], empty_directories=[["d", "e"]]))
    assert tree.directories == {("a",), ("a", "b"), ("d",), ("d", "e")}


HOSTILE: dict[str, list[Any]] = {
    "parent": [entry(path=["..", "x"])],
    "parent further down": [entry(path=["a", "..", "..", "x"])],
    "absolute": [entry(path=["/etc", "passwd"])],
    "slash in a name": [entry(path=["a/../../x"])],
    "empty name": [entry(path=["", "x"])],
    "dot": [entry(path=[".", "x"])],
    "no path": [entry(path=[])],
    "NUL": [entry(path=["a\0b"])],
    "backslashes": [entry(path=["..\\..\\x"])],
    "too long": [entry(path=["x" * 256])],
    "no such character": [entry(path=["\ud800"])],
    "the work directory": [entry(path=[".kara-load", "lock"])],
    "path of another type": [entry(path="a/b")],
    "number in the path": [entry(path=["a", 1])],
    "blob elsewhere": [entry(file="../../meta.json")],
    "blob with another name": [entry(file=f"{'0' * 32}_{'0' * 40}")],
    "digest with a slash": [entry(md5="../" + "0" * 29)],
    "digest in capitals": [entry(md5="A" * 32, file=f"{'A' * 32}_{BLOB.sha1}")],
    "negative size": [entry(size=-1)],
    "size of another type": [entry(size="7")],
    "enormous size": [entry(size=1 << 80)],
    "mode of another type": [entry(mode="rwx")],
    "time of another type": [entry(mtime_ns=1.5)],
    "twice": [entry(), entry()],
    "two sizes": [entry(), entry(path=["c"], size=8)],
    "file and directory": [entry(), entry(path=["a"])],
    "empty directory outside": [entry(empty_directories=[["..", "x"]])],
    "empty directory is a file": [entry(empty_directories=[["a", "b"]])],
    "empty directory below a file": [entry(empty_directories=[["a", "b", "c"]])],
    "empty directory without a name": [entry(empty_directories=[[]])],
    "missing key": [{"md5": BLOB.md5}],
    "no object": [["a"]],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str) -> None:
    with pytest.raises(FormatError, match="here: "):
        decode(*HOSTILE[case])


ODD_NAMES = st.sampled_from(
    ["", ".", "..", "a", "b", "/", "a/b", "\0", "\\", "..\\x", "\ud800", ".kara-load"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ODD_NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.dictionaries(
    st.sampled_from(["md5", "sha1", "file", "path", "size", "mode", "mtime_ns", "empty_directories"]),
    JSON | st.lists(ODD_NAMES, max_size=3) | st.lists(st.lists(ODD_NAMES, max_size=3), max_size=2),
    max_size=3,
)


@given(JSON | st.lists(CHANGES.map(lambda changes: entry(**changes)), max_size=4))
def test_whatever_is_accepted_stays_inside(document: Any) -> None:
    try:
        tree = decode_tree(json.dumps(document).encode(), "here")
    except FormatError:
        return
    files = {file.path for file in tree.files}
    assert len(files) == len(tree.files)
    assert not files & tree.directories
    for path in files | tree.directories:
        place = os.path.normpath(os.path.join("/target", *path))
        assert place == "/".join(("/target", *path))
        assert not place.startswith("/target/.kara-load")
        os.fsencode(place)


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b"null", b"\xff", b"[" * 100_000, b"[NaN]"])
def test_no_version_file(data: bytes) -> None:
    with pytest.raises(FormatError, match="here: not a version file"):
        decode_tree(data, "here")


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_digests_of_pieces_are_those_of_the_whole(pieces: list[bytes]) -> None:
    digest = BlobDigest()
    for piece in pieces:
        digest.update(piece)
    assert digest.blob() == blob_of(b"".join(pieces))


def test_digests_are_the_published_ones() -> None:
    assert blob_of(b"").name == "d41d8cd98f00b204e9800998ecf8427e_da39a3ee5e6b4b0d3255bfef95601890afd80709"
