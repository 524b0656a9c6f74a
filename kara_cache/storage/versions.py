"""Which versions a data set has, and which one is the latest: `meta.json`, for rows and for objects.

    {"latest": "2", "versions": ["1", "2"], "api": 2}

Byte for byte what the published kara-storage 2.x writes. A version is published after its data are there,
so that "latest" always leads to something.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from kara_cache.errors import FormatError
from kara_cache.storage.location import Location

META = "meta.json"
API = 2
_LOCK = ".meta.lock"
_ATTEMPTS = 5  # to find one's version in the file, where another writer may replace it at the same time

Kind = Literal["row", "obj"]


@dataclass(frozen=True, slots=True)
class Versions:
    """What `meta.json` says."""

    latest: str | None = None
    names: tuple[str, ...] = ()  # in the order they were first published
    more: tuple[tuple[str, Any], ...] = ()  # keys that are not ours, kept

    @classmethod
    def of(cls, meta: Mapping[str, Any], where: str) -> Versions:
        """Raises FormatError naming the place and what is wrong."""
        latest, names = meta.get("latest"), meta.get("versions")
        if not isinstance(names, list) or not isinstance(latest, str | None):
            raise FormatError(f"{where}: expected latest and versions, got {meta!r}")
        api = meta.get("api", API)
        if api != API:
            raise FormatError(f"{where}: api {api!r}, but only {API} is known")
        more = tuple((key, meta[key]) for key in meta if key not in ("latest", "versions", "api"))
        return cls(latest, tuple(map(str, names)), more)

    def with_version(self, name: str) -> Versions:
        """With `name` in it, and as the latest."""
        names = self.names if name in self.names else (*self.names, name)
        return Versions(name, names, self.more)

    @property
    def meta(self) -> dict[str, Any]:
        return {"latest": self.latest, "versions": [*self.names], "api": API, **dict(self.more)}


def read_meta(location: Location, kind: Kind, namespace: str, key: str) -> dict[str, Any]:
    """`meta.json` as it stands. Raises FileNotFoundError, and FormatError for what is no JSON object."""
    path = location.path(kind, namespace, key, META)
    try:
        raw = location.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"Dataset not exists: {kind} {namespace}/{key} in {location.url}") from None
    try:
        meta = json.loads(raw)
    except ValueError as exc:
        raise FormatError(f"{location.url}, {path}: {exc}") from exc
    if not isinstance(meta, dict):
        raise FormatError(f"{location.url}, {path}: expected an object, got {meta!r}")
    return meta


def write_meta(location: Location, kind: Kind, namespace: str, key: str, meta: Mapping[str, Any]) -> None:
    """Replaces `meta.json`; readers see the old one or the new one."""
    location.store.write(location.path(kind, namespace, key, META), json.dumps(meta).encode())


def read_versions(location: Location, kind: Kind, namespace: str, key: str) -> Versions | None:
    """None where there is no such data set. Raises FormatError."""
    try:
        meta = read_meta(location, kind, namespace, key)
    except FileNotFoundError:
        return None
    return Versions.of(meta, f"{location.url}, {kind} {namespace}/{key}, {META}")


def publish_version(location: Location, kind: Kind, namespace: str, key: str, name: str) -> Versions:
    """Adds `name` where it is new and makes it the latest, all at once.

    On file:// no version is lost however many processes publish. Object stores have nothing to lock with:
    the file is read again afterwards, and written again while another writer's version of it lacks ours.
    """
    with _alone(location, location.path(kind, namespace, key)):
        for _ in range(_ATTEMPTS):
            wanted = (read_versions(location, kind, namespace, key) or Versions()).with_version(name)
            write_meta(location, kind, namespace, key, wanted.meta)
            if location.local is not None:
                return wanted
            found = read_versions(location, kind, namespace, key)
            if found is not None and name in found.names:
                return found
    raise FormatError(f"{location.url}, {kind} {namespace}/{key}: other writers replace {META} all the time")


@contextmanager
def _alone(location: Location, directory: str) -> Iterator[None]:
    """One process of this machine (or of an NFS share) at a time."""
    if location.local is None:
        yield
        return
    location.store.make_directory(directory)
    descriptor = os.open(f"/{directory}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for a few milliseconds
        yield
    finally:
        os.close(descriptor)
