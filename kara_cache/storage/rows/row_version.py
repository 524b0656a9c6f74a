"""One version of a row data set: where its streams are."""

from __future__ import annotations

from dataclasses import dataclass

from kara_cache.storage.location import Location
from kara_cache.storage.rows.segments import SUFFIX
from kara_cache.storage.versions import META, publish_version, read_versions


@dataclass(frozen=True, slots=True)
class RowVersion:
    """Paths are those of the location's store."""

    location: Location
    namespace: str
    key: str
    name: str

    @classmethod
    def find(cls, location: Location, namespace: str, key: str, version: object, mode: str) -> RowVersion:
        """Mode "r" wants one that is published, "w" any name, or "latest" where there is one.

        Raises ValueError, in the words of the published package.
        """
        location.path("row", namespace, key)  # says what is wrong with them before anything is sent
        found, name = read_versions(location, "row", namespace, key), str(version)
        if found is None and mode == "r":
            raise ValueError(f"Dataset not exists: {namespace}/{key} in {location.url}")
        latest, names = (found.latest, found.names) if found is not None else (None, ())
        if name == "latest":
            if latest is None:
                raise ValueError(
                    f"No available version found in dataset `{key}`. "
                    "Please specify a version if you want to create a new dataset"
                )
            name = latest
        elif mode == "r" and name not in names:
            raise ValueError(
                f"Dataset version `{name}` not found in dataset `{key}`; "
                f"there are {', '.join(names) or 'none'}"
            )
        if name == META or not name:
            raise ValueError(f"version {name!r} of {namespace}/{key}: not a name for a version")
        return cls(location, namespace, key, name)

    def check_files(self) -> None:
        """A version without rows has files. Raises FileNotFoundError where there are none at all."""
        if not self._begins(self.index):
            raise FileNotFoundError(f"{self}: meta.json has it, but its files are missing")

    def check_index(self) -> None:
        """Before data without an index are taken for a torn tail: FileNotFoundError where they had one."""
        if not self._begins(self.index) and self._begins(self.data) and self.is_published():
            raise FileNotFoundError(f"{self}: has data, but its index is missing")

    def _begins(self, stream: str) -> bool:
        try:
            self.location.store.info(f"{stream}/0{SUFFIX}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def publish(self) -> None:
        """From now on it is the latest."""
        publish_version(self.location, "row", self.namespace, self.key, self.name)

    def is_published(self) -> bool:
        found = read_versions(self.location, "row", self.namespace, self.key)
        return found is not None and self.name in found.names

    @property
    def directory(self) -> str:
        return self.location.path("row", self.namespace, self.key, self.name)

    @property
    def index(self) -> str:
        return f"{self.directory}/index"

    @property
    def data(self) -> str:
        return f"{self.directory}/data"

    @property
    def sums(self) -> str:
        return f"{self.directory}/sums"

    def __str__(self) -> str:
        return f"rows {self.namespace}/{self.key}, version {self.name}, in {self.location.url}"
