"""Which versions of a directory there are, and how one is added: first its file, then `meta.json`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from kara_cache.errors import FormatError
from kara_cache.storage.location import Location
from kara_cache.storage.objects.object_tree import ObjectTree
from kara_cache.storage.objects.version_file import decode_tree, encode_tree
from kara_cache.storage.versions import Versions, publish_version, read_versions
from kara_cache.ufs.local_writer import remove_abandoned

LATEST = "latest"
_LOCK = ".save.lock"


class NoSuchVersion(FileNotFoundError, ValueError):
    """There is no such directory or version. A ValueError, too, as in the published package."""


class Catalog:
    """The versions of one key."""

    def __init__(self, location: Location, namespace: str, key: str) -> None:
        self._location = location
        self._namespace = namespace
        self._key = key

    def __str__(self) -> str:
        return f"{self._location.url}, obj {self._namespace}/{self._key}"

    def versions(self) -> Versions:
        """Raises NoSuchVersion where the key has none."""
        found = self._read()
        if found is None:
            raise NoSuchVersion(f"Dataset not exists: {self}")
        return found

    def find(self, version: object) -> str:
        """The name of a version that is there; "latest" is the one that was saved last."""
        versions = self.versions()
        name = versions.latest if str(version) == LATEST else str(version)
        if name is None:
            raise NoSuchVersion(f"No available version found in object storage `{self._key}`: {self}")
        if name not in versions.names:
            known = ", ".join(versions.names) or "none"
            raise NoSuchVersion(
                f"Object version `{name}` not found in storage `{self._key}`: {self} has {known}"
            )
        return name

    def tree(self, name: str) -> ObjectTree:
        """Raises FormatError for a version file that is missing or not to be trusted."""
        source = f"{self}, version {name}"
        try:
            data = self._location.read(self._path(name))
        except FileNotFoundError as exc:
            raise FormatError(
                f"{source}: its file is missing, the save was interrupted: save it again"
            ) from exc
        return decode_tree(data, source)

    def check_name(self, version: object) -> str | None:
        """The name that a save is to have, None for a free number. Raises what `publish` would, at once."""
        if version is None:
            return None
        if str(version) == LATEST:
            return self.find(LATEST)
        self._path(str(version))
        return str(version)

    def publish(self, tree: ObjectTree, name: str | None) -> str:
        """Makes the tree visible under `name`, or under the smallest free number; it is the latest then.

        Two saves at the same time never get the same number on file://. Object stores have nothing to
        lock with: the number is looked for at the last moment, which leaves the time of two requests.
        """
        data = encode_tree(tree)
        with self._alone():
            if name is None:
                taken = (self._read() or Versions()).names
                name = next(number for number in map(str, count()) if number not in taken)
            self._location.store.write(self._path(name), data)
            publish_version(self._location, "obj", self._namespace, self._key, name)
        return name

    def remove_abandoned(self) -> None:
        """Deletes what killed saves left beside `meta.json` and versions; blobs are gone on with."""
        if self._location.local is not None:
            key = self._location.path("obj", self._namespace, self._key)
            for directory in (key, f"{key}/vers"):
                remove_abandoned(f"/{directory}")

    def _read(self) -> Versions | None:
        return read_versions(self._location, "obj", self._namespace, self._key)

    def _path(self, name: str) -> str:
        if not name:
            raise ValueError("version: want a name, got an empty one")
        return f"{self._location.path('obj', self._namespace, self._key, 'vers', name)}.json"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this machine (or of an NFS share) at a time."""
        if self._location.local is None:
            yield
            return
        directory = self._location.path("obj", self._namespace, self._key)
        self._location.store.make_directory(directory)
        descriptor = os.open(f"/{directory}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # held while two small files are written
            yield
        finally:
            os.close(descriptor)
