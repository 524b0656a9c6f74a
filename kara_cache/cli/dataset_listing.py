"""Which data sets a place has: every directory with a `meta.json` in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from kara_cache.cli import screen
from kara_cache.storage.location import Location
from kara_cache.storage.versions import META, Kind

_MAX_DEPTH = 16  # a namespace and a key may have slashes; nobody nests them like that


def dataset_names(location: Location, kind: Kind, namespace: str | None) -> Iterator[str]:
    """`namespace/key` of each, as they are found. Raises FileNotFoundError where there is none."""
    root = location.path(kind, *([namespace] if namespace else []))
    prefix = len(location.path(kind)) + 1
    try:
        for path in _below(location, root, _MAX_DEPTH):
            yield path[prefix:]
    except FileNotFoundError:
        where = f"namespace {namespace} in {location.url}" if namespace else location.url
        raise FileNotFoundError(f"{where}: there is no data set of kind {kind}") from None


def print_names(names: Iterable[str], *, as_json: bool) -> None:
    for name in names:
        print(json.dumps({"name": name}) if as_json else printable(name))


def print_versions(names: Sequence[str], latest: str | None, *, as_json: bool) -> None:
    if as_json:
        screen.print_json({"latest": latest, "versions": [*names]})
        return
    for name in names:
        print(f"{printable(name)} (latest)" if name == latest else printable(name))


def printable(name: str) -> str:
    """A name whose bytes are not UTF-8 cannot be printed as it is."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _below(location: Location, directory: str, depth: int) -> Iterator[str]:
    children = list(location.store.list(directory))
    if any(child.path == f"{directory}/{META}" for child in children):
        yield directory
        return
    for child in children:
        if child.is_dir and depth:
            yield from _below(location, child.path, depth - 1)
