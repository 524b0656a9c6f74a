"""`kara row URL import` and `export`: rows from other formats, and to them."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path

from kara_cache.attachment import Attachment
from kara_cache.cli import screen
from kara_cache.cli.exit_code import UsageError
from kara_cache.cli.row_commands import opened
from kara_cache.cli.storage_place import open_place
from kara_cache.errors import FormatError
from kara_cache.serialization import serializer_named
from kara_cache.storage.interchange import export_rows, import_rows
from kara_cache.storage.interchange.record import Progress
from kara_cache.storage.location import Location
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_cache.storage.versions import META, Versions, read_versions, write_meta

_BY_ENDING = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".lmdb": "lmdb",
}
_WITH_BYTES = ("images", "webdataset")  # whose rows JSON cannot keep
_NAMES = ("json", "msgpack", "raw")


def import_(_: Attachment, arguments: argparse.Namespace) -> None:
    """Prints the version. One that cannot be imported as a whole is taken back, unless rows are appended."""
    kind = _kind(arguments.source, arguments.kind)
    serializer = serializer_named(_serialization(kind, arguments))
    namespace, key = arguments.namespace, arguments.key
    with closing(open_place(arguments)) as location:
        before = read_versions(location, "row", namespace, key) or Versions()
        version = _version(arguments, before)
        try:
            with RowDataset.open(location, namespace, key, "w", version, serializer) as dataset:
                with _bar("Importing") as progress:
                    rows = import_rows(arguments.source, kind, dataset, progress=progress)
        except BaseException:
            if version not in before.names:
                _take_back(location, namespace, key, version, before)
            raise
    if arguments.json:
        screen.print_json({"version": version, "rows": rows})
    else:
        print(f"{namespace}/{key}, version {version}: {rows} rows" if sys.stdout.isatty() else version)


def export(_: Attachment, arguments: argparse.Namespace) -> None:
    """Prints the number of rows."""
    kind = _kind(arguments.target, arguments.kind)
    serialization = _serialization(kind, arguments)
    with opened(arguments, serializer_named(serialization)) as dataset:
        try:
            with _bar("Exporting") as progress:
                rows = export_rows(dataset, kind, arguments.target, progress=progress)
        except FormatError as exc:
            if arguments.serialization is not None:
                raise
            raise FormatError(
                f"{exc}; they were taken for {serialization}, --serialization says otherwise"
            ) from exc
    if arguments.json:
        screen.print_json({"version": dataset.version.name, "rows": rows})
    else:
        print(f"{rows} rows in {arguments.target}" if sys.stdout.isatty() else rows)


def _kind(path: str, given: str | None) -> str:
    """What the name, or what is in the directory, tells."""
    if given is not None:
        return given
    place = Path(path)
    found = _BY_ENDING.get(place.suffix.lower())
    if found is None and place.is_dir():
        names = os.listdir(place)
        endings = {_BY_ENDING.get(Path(name).suffix.lower()) for name in names} & {"parquet", "webdataset"}
        found = "lmdb" if "data.mdb" in names else endings.pop() if len(endings) == 1 else None
    if found is None:
        raise UsageError(f"{path}: its name does not tell what it is; say it with --kind")
    return found


def _serialization(kind: str, arguments: argparse.Namespace) -> str:
    return arguments.serialization or ("msgpack" if kind in _WITH_BYTES else _NAMES[0])


def _version(arguments: argparse.Namespace, before: Versions) -> str:
    """The name that is asked for, or the smallest number that is free."""
    wanted: str | None = arguments.version
    if wanted is None:
        if arguments.append:
            raise UsageError("--append: say with -v to which version")
        return next(number for number in map(str, count()) if number not in before.names)
    if wanted == "latest" and before.latest is not None:
        wanted = before.latest
    if wanted in before.names and not arguments.append:
        raise FileExistsError(f"version {wanted} is there already; --append adds rows to it")
    return wanted


def _take_back(location: Location, namespace: str, key: str, version: str, before: Versions) -> None:
    """A version that was not there before: nobody else can have written to it."""
    now = read_versions(location, "row", namespace, key)
    if now is not None and version in now.names:
        names = tuple(name for name in now.names if name != version)
        if names:
            latest = before.latest if now.latest == version else now.latest
            write_meta(location, "row", namespace, key, Versions(latest, names, now.more).meta)
        else:
            location.store.delete(location.path("row", namespace, key, META))
    directory = location.path("row", namespace, key, version)
    if location.local is not None:
        shutil.rmtree(f"/{directory}", ignore_errors=True)
        return
    with suppress(FileNotFoundError):  # nothing was sent yet
        for file in list(location.store.list(directory, recursive=True)):
            location.store.delete(file.path)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    with screen.count(label, 0, "rows") as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield progress
        except BaseException:
            bar.leave = False  # what is on the screen last is what is wrong
            raise
