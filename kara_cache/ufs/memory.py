"""A store in this process's memory, for tests and examples."""

from __future__ import annotations

import errno
import io
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from kara_cache.errors import StaleVersion
from kara_cache.ufs.base import FileInfo, Progress
from kara_cache.ufs.path import check_path, listing_key
from kara_cache.ufs.per_process import PerProcess


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    version: str
    mtime: float


class MemoryStore:
    """An `UnderStore` with real directories; versions count up: "1", "2", ...

    Files are immutable values in one dict, so that readers take no lock and a fork at any moment
    leaves a usable copy in the child.
    """

    def __init__(self, name: str = "") -> None:
        self._url = f"memory://{name}"
        self._files: dict[str, _File] = {}
        self._directories: set[str] = {""}
        self._versions = itertools.count(1)
        # guards changes of _files and _directories; a thread of the parent may hold it during a fork
        self._locks = PerProcess(threading.Lock, lambda _: None)

    @property
    def url(self) -> str:
        return self._url

    def info(self, path: str) -> FileInfo:
        file = self._files.get(check_path(path))
        if file is not None:
            return FileInfo(path, len(file.data), file.version, file.mtime)
        if path in self._directories:
            return FileInfo(path, 0, "", is_dir=True)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._full(path))

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        found = self.info(path)
        if not found.is_dir:
            return iter((found,))
        return self._below(path, recursive)

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        if start < 0:
            raise ValueError(f"{self._full(path)}: start {start} is negative")
        file = self._files.get(check_path(path))
        if file is None:
            self.info(path)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._full(path))
        if version and version != file.version:
            raise StaleVersion(f"{self._full(path)}: version {version} wanted, {file.version} found")
        found = memoryview(file.data)[start : start + len(buffer)]
        buffer[: len(found)] = found
        if progress is not None:
            progress(len(found))
        return len(found)

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        return self._replace(check_path(path), bytes(data))

    def open_writer(self, path: str, *, append: bool = False) -> MemoryWriter:
        return MemoryWriter(self, check_path(path), append=append)

    def delete(self, path: str) -> None:
        with self._locks.get():
            if self.info(path).is_dir:
                if next(self._below(path, False), None) is not None:
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self._full(path))
                self._directories = self._directories - {path} | {""}
            else:
                del self._files[path]

    def make_directory(self, path: str) -> None:
        with self._locks.get():
            self._make_directories(check_path(path))

    def close(self) -> None:
        pass

    def __repr__(self) -> str:
        files = self._files.copy()
        return f"<MemoryStore {len(files)} files, {sum(len(f.data) for f in files.values())} bytes>"

    def _full(self, path: str) -> str:
        return f"{self._url}/{path}"

    def _below(self, path: str, recursive: bool) -> Iterator[FileInfo]:
        prefix = path + "/" if path else ""
        names = [(name, False) for name in self._files.copy() if name.startswith(prefix)]
        if not recursive:
            names = [entry for entry in names if "/" not in entry[0][len(prefix) :]]
            names += [
                (name, True)
                for name in self._directories
                if name and name.startswith(prefix) and "/" not in name[len(prefix) :]
            ]
        for name, is_dir in sorted(names, key=lambda entry: listing_key(*entry)):
            file = self._files.get(name)
            if is_dir:
                yield FileInfo(name, 0, "", is_dir=True)
            elif file is not None:  # not deleted since the names were taken
                yield FileInfo(name, len(file.data), file.version, file.mtime)

    def _make_directories(self, path: str) -> None:
        segments = path.split("/") if path else []
        paths = {"/".join(segments[: i + 1]) for i in range(len(segments))}
        for name in paths & self._files.keys():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._full(name))
        self._directories = self._directories | paths

    def _replace(self, path: str, data: bytes, *, append: bool = False) -> FileInfo:
        with self._locks.get():
            if path in self._directories:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._full(path))
            self._make_directories(path.rpartition("/")[0])
            before = self._files.get(path)
            if append and before is not None:
                data = before.data + data
            self._files[path] = _File(data, str(next(self._versions)), time.time())
            return self.info(path)


class MemoryWriter:
    def __init__(self, store: MemoryStore, path: str, *, append: bool) -> None:
        self._store = store
        self._path = path
        self._append = append
        self._data: io.BytesIO = io.BytesIO()
        self._committed: FileInfo | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return self._data.write(data)

    def commit(self) -> FileInfo:
        if self._committed is None:
            self._committed = self._store._replace(self._path, self._data.getvalue(), append=self._append)
            self._data.close()
        return self._committed

    def abort(self) -> None:
        self._data.close()

    def __enter__(self) -> MemoryWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort()
        elif not self._data.closed:
            self.commit()
