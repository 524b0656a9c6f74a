"""A store as seen through the cache, with the verbs of a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kara_cache.attachment import Attachment
from kara_cache.cache_client import CacheClient
from kara_cache.errors import StaleVersion
from kara_cache.file_writes import CacheWriter
from kara_cache.ufs.base import FileInfo, Progress
from kara_cache.ufs.path import check_path


class CachedStore:
    """An `UnderStore` whose root is any url: reads come from the cache, writes go through it.

    Raises what `CacheClient` raises. Usable in a forked child. `close` ends the connections; the next
    use opens new ones.
    """

    def __init__(self, attachment: Attachment, url: str) -> None:
        """Sends nothing yet."""
        self._attachment = attachment
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    @property
    def client(self) -> CacheClient:
        return self._attachment.client

    def kara_path(self, path: str) -> str:
        """Where `client` finds a file of this store; mounts that moved since are noticed."""
        root = self._attachment.kara_path(self._url)
        return f"{root.rstrip('/')}/{check_path(path)}" if path else root

    def info(self, path: str) -> FileInfo:
        return replace(self.client.info(self.kara_path(path)), path=path)

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        base = self.kara_path("").rstrip("/")
        for found in self.client.list(self.kara_path(path), recursive=recursive):
            yield replace(found, path=found.path[len(base) + 1 :])

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        file = self.client.info(self.kara_path(path))
        if version is not None and version != file.version:
            raise StaleVersion(f"{self._url}/{path}: version {version} wanted, {file.version} found")
        done = self.client.read_into(file, start, buffer)
        if progress is not None:
            progress(done)
        return done

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        return replace(self.client.write(self.kara_path(path), data), path=path)

    def open_writer(self, path: str, *, append: bool = False) -> CacheWriter:
        """What its `commit` returns has the path of the kara file."""
        return self.client.open_writer(self.kara_path(path), append=append)

    def delete(self, path: str) -> None:
        self.client.delete(self.kara_path(path))

    def make_directory(self, path: str) -> None:
        self.client.make_directory(self.kara_path(path))

    def close(self) -> None:
        self._attachment.close()

    def __repr__(self) -> str:
        return f"<CachedStore {self._url}>"
