"""`vers/<version>.json`: an object tree as bytes, as the published package writes and reads it.

    [{"md5": "<32 hex>", "sha1": "<40 hex>", "file": "<md5>_<sha1>", "path": ["dir", "name"], "size": 12,
      "mode": 420, "mtime_ns": 1700000000000000000, "empty_directories": [["logs"], ["a", "b"]]}, ...]

The first five keys are the published format (kara-storage 2.1.5). The others are ours, each may be
missing, and readers that do not know them pass over them: `mode` has the permission bits, `mtime_ns` the
time of the last change, `empty_directories` stands in the first entry only. So a tree without any file
has no place for its directories.

What is read here is not trusted: it comes from a store that others can write to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from kara_cache.errors import FormatError
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree, PathParts
from kara_cache.storage.objects.work_directory import WORK_DIRECTORY

PERMISSIONS = 0o777  # set-uid and the like are neither kept nor believed
_MAX_NAME_BYTES = 255  # NAME_MAX of Linux file systems
_MAX = 1 << 62  # of a size in bytes, and of a time in nanoseconds: until 2116

_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]+$")]


class _Entry(msgspec.Struct, frozen=True):
    md5: Annotated[_Hex, msgspec.Meta(min_length=32, max_length=32)]
    sha1: Annotated[_Hex, msgspec.Meta(min_length=40, max_length=40)]
    file: str
    path: Annotated[list[str], msgspec.Meta(min_length=1)]
    size: Annotated[int, msgspec.Meta(ge=0, le=_MAX)]
    mode: Annotated[int, msgspec.Meta(ge=0, le=_MAX)] | None = None
    mtime_ns: Annotated[int, msgspec.Meta(ge=-_MAX, le=_MAX)] | None = None
    empty_directories: list[Annotated[list[str], msgspec.Meta(min_length=1)]] = []


def encode_tree(tree: ObjectTree) -> bytes:
    entries = [_document(file) for file in tree.files]
    if entries and tree.empty_directories:
        entries[0]["empty_directories"] = [[*path] for path in tree.empty_directories]
    return json.dumps(entries).encode()


def decode_tree(data: bytes | bytearray | memoryview, source: str) -> ObjectTree:
    """The tree of a version file; nothing in it leads out of a directory that it is loaded into.

    Raises FormatError naming `source`, the entry and what is wrong with it.
    """
    try:
        entries = msgspec.convert(json.loads(bytes(data)), list[_Entry])
    except (ValueError, RecursionError) as exc:  # msgspec's and json's are ValueErrors
        raise FormatError(f"{source}: not a version file: {exc}") from exc
    files = [_file(entry, source) for entry in entries]
    empty = {check_parts(path, source) for entry in entries for path in entry.empty_directories}
    tree = ObjectTree(tuple(sorted(files, key=lambda file: file.path)), tuple(sorted(empty)))
    _check_names_once(tree, source)
    return tree


def check_parts(parts: Iterable[str], source: str) -> PathParts:
    """The names of a path below a root, if none of them can lead anywhere else, on any system."""
    path = tuple(parts)
    for name in path:
        wrong = _wrong_with(name)
        if wrong:
            raise FormatError(f"{source}: path {list(path)!r}: {name!r} {wrong}")
    if path[:1] == (WORK_DIRECTORY,):
        raise FormatError(
            f"{source}: path {list(path)!r}: {WORK_DIRECTORY} is where loads keep unfinished files"
        )
    return path


def _wrong_with(name: str) -> str:
    if name in ("", ".", ".."):
        return "is not a name"
    if "/" in name or "\0" in name:
        return "has a slash or NUL in it"
    if ".." in name.split("\\"):
        return 'has a backslash and ".."'
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return "cannot be the name of a file here"
    return f"is {length} bytes long, limit {_MAX_NAME_BYTES}" if length > _MAX_NAME_BYTES else ""


def _file(entry: _Entry, source: str) -> FileEntry:
    path = check_parts(entry.path, source)
    blob = Blob(entry.md5, entry.sha1, entry.size)
    if entry.file != blob.name:
        raise FormatError(f"{source}: path {entry.path!r}: file {entry.file!r}, want {blob.name!r}")
    mode = None if entry.mode is None else entry.mode & PERMISSIONS
    return FileEntry(path, blob, mode, entry.mtime_ns)


def _check_names_once(tree: ObjectTree, source: str) -> None:
    paths: set[PathParts] = set()
    sizes: dict[str, int] = {}
    for file in tree.files:
        if file.path in paths:
            raise FormatError(f"{source}: path {list(file.path)!r} is there twice")
        paths.add(file.path)
        if sizes.setdefault(file.blob.name, file.blob.size) != file.blob.size:
            raise FormatError(f"{source}: blob {file.blob.name} has two sizes")
    for path in sorted(paths & tree.directories):
        raise FormatError(f"{source}: path {list(path)!r} is both a file and a directory")


def _document(file: FileEntry) -> dict[str, Any]:
    blob = file.blob
    document: dict[str, Any] = {
        "md5": blob.md5,
        "sha1": blob.sha1,
        "file": blob.name,
        "path": [*file.path],
        "size": blob.size,
    }
    if file.mode is not None:
        document["mode"] = file.mode
    if file.mtime_ns is not None:
        document["mtime_ns"] = file.mtime_ns
    return document
