"""One place with data sets in it: the face that `kara_storage.KaraStorage` had, with its names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from kara_cache.serialization import Serializer
from kara_cache.storage.location import Location, open_location
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_cache.storage.versions import read_meta, write_meta


class KaraStorage:
    """Row data sets and directories of objects below one url. Thread-safe, pickles as its arguments.

    Args:
        url: As for `open_location`: file://, http(s)://, oss://, s3://, or `kara::` in front of one of
            them, which reads through the cache.
        options: The store's own, such as `app_key`, `app_secret`, `use_ssl`, `headers`; with `kara::` also
            `kara={...}` with keys of `ClientConfig`.

    Nothing is sent before something is opened. Raises ValueError for an unknown scheme, ConfigError for
    an unknown option.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._arguments = (url, options)
        self.location: Location = open_location(url, **options)

    @property
    def prefix(self) -> str:
        """The path part of the url, with a slash at its end; for file:// the absolute directory."""
        if self.location.local is not None:
            return f"{str(self.location.local).rstrip('/')}/"
        parts = urlsplit(self._arguments[0].removeprefix("kara::"))
        path = parts.path
        if parts.scheme == "oss":
            path = "/".join(path.split("/")[2:])
        return path if path.endswith("/") else f"{path}/"

    # -- rows --------------------------------------------------------------------------------------

    def open_dataset(
        self,
        namespace: str,
        key: str,
        mode: str = "r",
        version: object = "latest",
        serialization: Serializer | None = None,
        **options: Any,  # of RowDataset.open, which refuses unknown ones
    ) -> RowDataset:
        """A data set to read ("r") or to append to ("w").

        Args:
            version: "latest", or a name; other values are taken as `str(version)`. A new data set or
                version is made by opening it with "w" and a name.
            serialization: How rows become objects; JSON if None.
            options: `start` and `length` of a window, `buffer_size`, `verify`; with "w" `max_file_size`.

        Raises:
            ValueError: another mode; there is no such data set or version; an unknown option.
            BlockingIOError: another writer has it open (the message says which).
        """
        return RowDataset.open(self.location, namespace, key, mode, version, serialization, **options)

    def open(
        self,
        namespace: str,
        key: str,
        mode: str = "r",
        version: object = "latest",
        serialization: Serializer | None = None,
        **options: Any,
    ) -> RowDataset:
        """The same as `open_dataset`; what the published documents use."""
        return self.open_dataset(namespace, key, mode, version, serialization, **options)

    def get_row_meta(self, namespace: str, key: str) -> dict[str, Any]:
        """`{"latest": ..., "versions": [...], "api": 2}`. Raises FileNotFoundError."""
        return read_meta(self.location, "row", namespace, key)

    def put_row_meta(self, namespace: str, key: str, meta: Mapping[str, Any]) -> None:
        """Replaces it as a whole."""
        write_meta(self.location, "row", namespace, key, meta)

    # -- objects -----------------------------------------------------------------------------------

    def get_object_meta(self, namespace: str, key: str) -> dict[str, Any]:
        """`{"latest": ..., "versions": [...], "api": 2}`. Raises FileNotFoundError."""
        return read_meta(self.location, "obj", namespace, key)

    def put_object_meta(self, namespace: str, key: str, meta: Mapping[str, Any]) -> None:
        """Replaces it as a whole."""
        write_meta(self.location, "obj", namespace, key, meta)

    def save_directory(
        self,
        namespace: str,
        key: str,
        local_path: str,
        version: object = None,
        progress_bar: bool = True,
        **options: Any,  # of storage.objects.save_directory, which refuses unknown ones
    ) -> str:
        """Saves the files below `local_path`; the version. See `storage.objects.save_directory`."""
        from kara_cache.storage import objects

        return objects.save_directory(
            self.location, namespace, key, local_path, version, progress_bar=progress_bar, **options
        )

    def load_directory(
        self,
        namespace: str,
        key: str,
        local_path: str,
        version: object = "latest",
        progress_bar: bool = True,
        **options: Any,  # of storage.objects.load_directory, which refuses unknown ones
    ) -> str:
        """Loads a version into `local_path`; its name. See `storage.objects.load_directory`."""
        from kara_cache.storage import objects

        return objects.load_directory(
            self.location, namespace, key, local_path, version, progress_bar=progress_bar, **options
        )

    # -- life --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends connections. Idempotent."""
        self.location.close()

    def __enter__(self) -> KaraStorage:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., KaraStorage], tuple[Any, ...]]:
        return _rebuild, self._arguments

    def __repr__(self) -> str:
        return f"<KaraStorage {self.location.url}>"


def _rebuild(url: str, options: dict[str, Any]) -> KaraStorage:
    return KaraStorage(url, **options)
