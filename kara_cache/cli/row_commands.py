"""`kara row`: rows in a store, looked at, listed and verified."""

from __future__ import annotations

import argparse
import curses
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from kara_cache.attachment import Attachment
from kara_cache.cli import screen
from kara_cache.cli.dataset_listing import dataset_names, print_names, print_versions
from kara_cache.cli.exit_code import UsageError
from kara_cache.cli.row_text import MsgpackRows, Rows, msgpack_as_json, row_line
from kara_cache.cli.storage_place import open_place
from kara_cache.errors import FormatError
from kara_cache.quantity import format_bytes
from kara_cache.serialization import NoSerializer, Serializer
from kara_cache.storage.location import Location
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_cache.storage.versions import Versions, read_versions


def view(_: Attachment, arguments: argparse.Namespace) -> None:
    """The viewer on a terminal; every row from `--begin` as a line of JSON anywhere else."""
    from kara_cache.cli import row_viewer  # looks for a terminal's library

    with opened(arguments) as dataset:
        if sys.stdin.isatty() and sys.stdout.isatty():
            try:
                row_viewer.view(_rows(dataset, arguments), arguments.begin)
                return
            except curses.error as exc:
                print(f"kara: no viewer on this terminal ({exc}), so rows as JSON lines", file=sys.stderr)
        _print_rows(dataset, arguments, len(dataset))


def head(_: Attachment, arguments: argparse.Namespace) -> None:
    with opened(arguments) as dataset:
        _print_rows(dataset, arguments, arguments.begin + arguments.count)


def list_rows(_: Attachment, arguments: argparse.Namespace) -> None:
    """Names of data sets, or versions of one."""
    with closing(open_place(arguments)) as location:
        if arguments.key is None:
            print_names(dataset_names(location, "row", arguments.namespace), as_json=arguments.json)
        else:
            versions = _versions(location, arguments)
            print_versions(versions.names, versions.latest, as_json=arguments.json)


def info(_: Attachment, arguments: argparse.Namespace) -> None:
    with opened(arguments) as dataset:
        rows, size, found = len(dataset), dataset.nbytes(), dataset.version
        versions = _versions(found.location, arguments)
        if arguments.json:
            screen.print_json(
                {"version": found.name, "rows": rows, "bytes": size, "latest": versions.latest}
                | {"versions": [*versions.names]}
            )
            return
        mean = f", {format_bytes(size // rows)} a row" if rows else ""
        for name, value in (
            ("place", found.location.url),
            ("rows", str(rows)),
            ("bytes", f"{size} ({format_bytes(size)}{mean})"),
            ("version", f"{found.name}{' (latest)' if found.name == versions.latest else ''}"),
            ("versions", ", ".join(versions.names)),
        ):
            print(f"{name:9} {value}")


def verify(_: Attachment, arguments: argparse.Namespace) -> None:
    """Raises FormatError when a row is damaged, after all of them are printed."""
    with opened(arguments) as dataset:
        with screen.count("Verifying", len(dataset), "rows") as bar:
            found = dataset.verify(bar.update)
        version = dataset.version.name
    if arguments.json:
        damaged = [{"row": number, "problem": problem} for number, problem in found.damaged]
        counts = {"rows": found.rows, "with_checksum": found.with_checksum}
        screen.print_json({"version": version, **counts, "damaged": damaged})
    else:
        for _number, problem in found.damaged:
            print(problem)
    if not found.ok:
        raise FormatError(f"version {version}: {len(found.damaged)} of {found.rows} rows are damaged")
    if not arguments.json:
        print(
            f"version {version}: {found.rows} rows, {found.with_checksum} of them with a checksum, all right"
        )


@contextmanager
def opened(arguments: argparse.Namespace, serializer: Serializer | None = None) -> Iterator[RowDataset]:
    """With rows as bytes, unless a serializer is given.

    Raises FileNotFoundError where the data set or its version is not there.
    """
    with closing(open_place(arguments)) as location:
        versions = _versions(location, arguments)
        version = arguments.version or "latest"
        if version != "latest" and version not in versions.names:
            raise FileNotFoundError(
                f"{_name(arguments)}: no version {version}, there are {', '.join(versions.names)}"
            )
        with RowDataset.open(
            location, arguments.namespace, arguments.key, "r", version, serializer or NoSerializer()
        ) as dataset:
            if getattr(arguments, "begin", 0) > len(dataset):
                raise UsageError(f"--begin {arguments.begin}: there are {len(dataset)} rows")
            yield dataset


def _versions(location: Location, arguments: argparse.Namespace) -> Versions:
    found = read_versions(location, "row", arguments.namespace, arguments.key)
    if found is None:
        raise FileNotFoundError(f"{_name(arguments)}: there is no such data set in {location.url}")
    return found


def _name(arguments: argparse.Namespace) -> str:
    return f"{arguments.namespace}/{arguments.key}"


def _print_rows(dataset: RowDataset, arguments: argparse.Namespace, stop: int) -> None:
    start = arguments.begin
    rows = dataset.slice(start, max(0, min(stop, len(dataset)) - start))
    for row in map(msgpack_as_json, rows) if arguments.serialization == "msgpack" else rows:
        print(row_line(row))


def _rows(dataset: RowDataset, arguments: argparse.Namespace) -> Rows:
    return MsgpackRows(dataset) if arguments.serialization == "msgpack" else dataset
