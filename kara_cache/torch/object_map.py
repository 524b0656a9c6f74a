"""A directory of files, such as images, as a map-style data set that is read through the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fsspec.core import url_to_fs
from torch.utils.data import Dataset

from kara_cache.cache_client import CacheClient
from kara_cache.errors import FormatError
from kara_cache.filesystem import KaraFileSystem
from kara_cache.storage.kara_storage import KaraStorage
from kara_cache.storage.location import Location
from kara_cache.storage.objects import list_files
from kara_cache.ufs.base import FileInfo

Decode = Callable[[str, bytes], Any]


class ObjectMap(Dataset):
    """Files by number, in the order of their names; a batch takes one request to each worker that has some.

    They are listed once, here, and read at the versions that they had then: a file that is replaced
    later raises StaleVersion, and one that is added does not appear. It is a `Rows`, too, so that
    `RowStream(ObjectMap(...))` streams them with read-ahead.

    Args:
        url: Of the directory: `kara://mount/path`, or `kara::<url>` over a store.
        suffixes: Only files whose names end so, whatever the case: `(".jpg", ".png")`.
        decode: Called with the name below the directory ("cat/1.jpg") and the bytes, where the file is
            fetched; what it returns is the item. Without it the bytes are.
        options: Of the filesystem, as for `fsspec.open`.

    Raises:
        TypeError: `url` is not one of the cache.
        FileNotFoundError: there is no such directory, or no such file in it.
    """

    def __init__(
        self,
        url: str,
        *,
        suffixes: tuple[str, ...] | None = None,
        decode: Decode | None = None,
        **options: Any,  # checked by the filesystem
    ) -> None:
        fs, path = url_to_fs(url, **options)
        if not isinstance(fs, KaraFileSystem):
            raise TypeError(
                f"{url}: not a url of the cache, such as kara://mount/path or kara::s3://bucket/path"
            )
        base = fs.kara_path(path)
        below = len(base.rstrip("/")) + 1
        found = {file.path[below:]: file for file in fs.client.list(base, recursive=True) if not file.is_dir}
        self._keep(url, fs, found, suffixes, decode)

    @classmethod
    def of_version(
        cls,
        storage: KaraStorage,
        namespace: str,
        key: str,
        version: object = "latest",
        *,
        suffixes: tuple[str, ...] | None = None,
        decode: Decode | None = None,
    ) -> ObjectMap:
        """The files of a version that `save_directory` saved, under the names that they had.

        A version never changes, so neither does this. `storage` must be one of a `kara::` url.

        Raises:
            TypeError: `storage` does not read through the cache.
            FileNotFoundError: there is no such version, or no such file in it.
            FormatError: a blob is missing that the version has.
        """
        location = storage.location
        if location.cached is None:
            raise TypeError(
                f"{location.url}: does not read through the cache; put kara:: in front of the url"
            )
        where = f"{location.url}, obj {namespace}/{key}, version {version}"
        tree = list_files(location, namespace, key, version)
        blobs = location.cached.kara_path(location.path("obj", namespace, key, "data"))
        stored = {file.path.rpartition("/")[2]: file for file in location.cached.client.list(blobs)}
        missing = [file.name for file in tree.files if file.blob.name not in stored]
        if missing:
            raise FormatError(f"{where}: {len(missing)} files have no blob, among them {missing[0]}")
        made = cls.__new__(cls)
        found = {file.name: stored[file.blob.name] for file in tree.files}
        made._keep(where, location, found, suffixes, decode)
        return made

    def _keep(
        self,
        where: str,
        source: KaraFileSystem | Location,
        found: Mapping[str, FileInfo],
        suffixes: tuple[str, ...] | None,
        decode: Decode | None,
    ) -> None:
        endings = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
        names = sorted(name for name in found if endings is None or name.lower().endswith(endings))
        if not names:
            raise FileNotFoundError(f"{where}: no file" + (f" that ends with {suffixes}" if suffixes else ""))
        self._where = where
        self._source = source
        self._names = names
        self._files = [found[name] for name in names]
        self._decode = decode

    def __repr__(self) -> str:
        return f"<ObjectMap of {len(self)} files in {self._where}>"

    @property
    def names(self) -> list[str]:
        """Names below the directory, by number: what labels can be told from."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        """Negative numbers count from the end; IndexError beyond it."""
        return self.read_batch([index + len(self) if index < 0 else index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return self.read_batch(indices)

    def read_batch(self, indices: Sequence[int]) -> list[Any]:
        wrong = [index for index in indices if not 0 <= index < len(self)]
        if wrong:
            raise IndexError(f"file {wrong[0]} of {len(self)}")
        files = [self._files[index] for index in indices]
        views = self._client.read_ranges([(file, 0, file.size) for file in files])
        data = map(bytes, views)  # a copy each, because one view would keep the whole batch in memory
        if self._decode is None:
            return list(data)
        names = [self._names[index] for index in indices]
        return [self._decode(name, content) for name, content in zip(names, data, strict=True)]

    def close(self) -> None:
        """Ends the connections of this process; the next use opens new ones. Idempotent."""
        self._source.close()

    @property
    def _client(self) -> CacheClient:
        """Of this process."""
        if isinstance(self._source, KaraFileSystem):
            return self._source.client
        assert self._source.cached is not None, "refused at construction"
        return self._source.cached.client
