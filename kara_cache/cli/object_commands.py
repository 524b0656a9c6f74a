"""`kara obj`: directories in a store, saved, loaded, listed and verified."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from typing import Any

from kara_cache.attachment import Attachment
from kara_cache.cli import screen
from kara_cache.cli.dataset_listing import dataset_names, print_names, print_versions, printable
from kara_cache.cli.exit_code import UsageError
from kara_cache.cli.storage_place import open_place
from kara_cache.errors import FormatError
from kara_cache.quantity import format_bytes
from kara_cache.storage import objects
from kara_cache.storage.location import Location
from kara_cache.storage.objects import FileEntry


def save(_: Attachment, arguments: argparse.Namespace) -> None:
    """Prints the version."""
    with closing(open_place(arguments)) as location:
        version = objects.save_directory(
            location,
            arguments.namespace,
            arguments.key,
            arguments.path,
            arguments.version,
            progress_bar=_bars(),
            verify=arguments.verify,
        )
        _print_version(location, arguments, version)


def load(_: Attachment, arguments: argparse.Namespace) -> None:
    """Prints the version."""
    with closing(open_place(arguments)) as location:
        version = objects.load_directory(
            location,
            arguments.namespace,
            arguments.key,
            arguments.path,
            arguments.version or "latest",
            progress_bar=_bars(),
            delete=arguments.delete,
        )
        _print_version(location, arguments, version)


def list_objects(_: Attachment, arguments: argparse.Namespace) -> None:
    """Names of directories, versions of one, or with -v the files of a version."""
    with closing(open_place(arguments)) as location:
        if arguments.key is None:
            if arguments.version is not None:
                raise UsageError("-v: want a namespace and a key before it")
            print_names(dataset_names(location, "obj", arguments.namespace), as_json=arguments.json)
        elif arguments.version is None:
            versions = objects.list_versions(location, arguments.namespace, arguments.key)
            print_versions(versions.names, versions.latest, as_json=arguments.json)
        else:
            tree = objects.list_files(location, arguments.namespace, arguments.key, arguments.version)
            for file in tree.files:
                _print_file(file, long=arguments.long, as_json=arguments.json)


def verify(_: Attachment, arguments: argparse.Namespace) -> None:
    """Raises FormatError when something is damaged, after all of it is printed."""
    with closing(open_place(arguments)) as location:
        verdict = objects.verify_directory(
            location,
            arguments.namespace,
            arguments.key,
            arguments.version or "latest",
            local_path=arguments.path,
            progress_bar=_bars(),
        )
    if arguments.json:
        problems = [
            {"blob": problem.blob, "problem": problem.what, "files": [*problem.files]}
            for problem in verdict.problems
        ]
        counts = {"files": verdict.files, "blobs": verdict.blobs, "bytes": verdict.size}
        screen.print_json({"version": verdict.version, **counts, "problems": problems})
    else:
        for problem in verdict.problems:
            print(f"{problem.blob}  {problem.what}: {', '.join(map(printable, problem.files))}")
    count, noun = (verdict.blobs, "blobs") if arguments.path is None else (verdict.files, "files")
    if verdict.problems:
        raise FormatError(f"version {verdict.version}: {len(verdict.problems)} of {count} {noun} are damaged")
    if not arguments.json:
        blobs, size = verdict.blobs, format_bytes(verdict.size)
        print(f"version {verdict.version}: {verdict.files} files in {blobs} blobs, {size}, all right")


def _print_version(location: Location, arguments: argparse.Namespace, version: str) -> None:
    if not arguments.json:
        print(version)
        return
    tree = objects.list_files(location, arguments.namespace, arguments.key, version)
    screen.print_json({"version": version, "files": len(tree.files), "bytes": tree.size})


def _print_file(file: FileEntry, *, long: bool, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {"path": file.name, "size": file.blob.size, "blob": file.blob.name}
        document |= {"mode": file.mode, "mtime_ns": file.mtime_ns}
        print(json.dumps(document))
    elif long:
        mode = "-" if file.mode is None else f"{file.mode:03o}"
        changed = screen.local_time(None if file.mtime_ns is None else file.mtime_ns / 1e9)
        print(f"{mode:>4} {file.blob.size:>14}  {changed:19}  {printable(file.name)}")
    else:
        print(printable(file.name))


def _bars() -> bool:
    return sys.stderr.isatty()
