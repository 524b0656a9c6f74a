"""A directory of files, such as images, as a map-style data set that is read through the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fsspec.core import url_to_fs
from torch.utils.data import Dataset

from kara_cache.filesystem import KaraFileSystem
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
        self._fs = fs
        self._decode = decode
        base = fs.kara_path(path)
        endings = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
        found = [
            file
            for file in fs.client.list(base, recursive=True)
            if not file.is_dir and (endings is None or file.path.lower().endswith(endings))
        ]
        if not found:
            raise FileNotFoundError(f"{url}: no file" + (f" that ends with {suffixes}" if suffixes else ""))
        self._files: list[FileInfo] = sorted(found, key=lambda file: file.path)
        self._below = len(base.rstrip("/")) + 1
        self._url = url

    def __repr__(self) -> str:
        return f"<ObjectMap of {len(self)} files in {self._url}>"

    @property
    def names(self) -> list[str]:
        """Names below the directory, by number: what labels can be told from."""
        return [file.path[self._below :] for file in self._files]

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
        views = self._fs.client.read_ranges([(file, 0, file.size) for file in files])
        data = map(bytes, views)  # a copy each, because one view would keep the whole batch in memory
        if self._decode is None:
            return list(data)
        return [
            self._decode(file.path[self._below :], content) for file, content in zip(files, data, strict=True)
        ]
