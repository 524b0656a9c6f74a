"""The under stores behind the mounts, opened when first used, counted on every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from kara_cache.mount import Mount, MountTable, normalize_path
from kara_cache.secret_ref import resolve_options
from kara_cache.ufs import open_store
from kara_cache.ufs.base import FileInfo, UnderStore
from kara_worker.metrics import WorkerMetrics


class MountedStores:
    """Thread-safe. Paths are full kara paths; the mount table may be replaced while serving."""

    def __init__(
        self,
        mounts: MountTable,
        metrics: WorkerMetrics,
        *,
        opener: Callable[[Mount], UnderStore] | None = None,
    ) -> None:
        self._mounts = mounts
        self._metrics = metrics
        self._opener = opener or _open
        self._stores: dict[str, tuple[Mount, UnderStore]] = {}
        self._lock = threading.Lock()  # guards _mounts and _stores

    @property
    def mounts(self) -> MountTable:
        return self._mounts

    def replace_mounts(self, mounts: MountTable) -> None:
        with self._lock:
            self._mounts = mounts

    def locate(self, path: str) -> tuple[Mount, str]:
        """The mount of a path and the path below it; the one place where a request's path is checked."""
        return self._mounts.resolve(normalize_path(path))

    def store(self, mount: Mount) -> UnderStore:
        with self._lock:
            known = self._stores.get(mount.name)
            if known is not None and known[0] == mount:
                return known[1]
        opened = self._opener(mount)  # outside the lock: it may import a library or read a secret file
        with self._lock:
            known = self._stores.get(mount.name)
            if known is not None and known[0] == mount:
                opened.close()
                return known[1]
            self._stores[mount.name] = (mount, opened)
        return opened

    def info(self, path: str) -> FileInfo:
        """ "/" is a directory of mounts."""
        if path == "/":
            return FileInfo("/", 0, "", None, is_dir=True)
        mount, relative = self.locate(path)
        with self._metrics.store_request(mount.name, "info"):
            return _above(self.store(mount).info(relative), mount)

    def list(self, path: str, *, recursive: bool) -> Iterator[FileInfo]:
        """As `UnderStore.list`, with full paths; below "/" are the mounts."""
        if path == "/":
            for mount in self._mounts:
                if recursive:
                    yield from self.list(f"/{mount.name}", recursive=True)
                else:
                    yield FileInfo(f"/{mount.name}", 0, "", None, is_dir=True)
            return
        mount, relative = self.locate(path)
        with self._metrics.store_request(mount.name, "list"):
            for info in self.store(mount).list(relative, recursive=recursive):
                yield _above(info, mount)

    def read_into(
        self,
        mount: Mount,
        relative: str,
        start: int,
        buffer: memoryview,
        version: str,
        progress: Callable[[int], None] | None,
    ) -> int:
        with self._metrics.store_request(mount.name, "read"):
            count = self.store(mount).read_into(
                relative, start, buffer, version=version or None, progress=progress
            )
        self._metrics.store_bytes(mount.name, count)
        return count

    def delete(self, path: str) -> None:
        mount, relative = self.writable(path)
        with self._metrics.store_request(mount.name, "delete"):
            self.store(mount).delete(relative)

    def make_directory(self, path: str) -> None:
        mount, relative = self.writable(path)
        with self._metrics.store_request(mount.name, "write"):
            self.store(mount).make_directory(relative)

    def writable(self, path: str) -> tuple[Mount, str]:
        mount, relative = self.locate(path)
        if mount.read_only:
            raise PermissionError(f"mount {mount.name!r} is read-only: {path}")
        return mount, relative

    def close(self) -> None:
        with self._lock:
            stores, self._stores = list(self._stores.values()), {}
        for _, store in stores:
            store.close()


def _open(mount: Mount) -> UnderStore:
    return open_store(mount.url, resolve_options(mount.options))


def _above(info: FileInfo, mount: Mount) -> FileInfo:
    path = f"/{mount.name}/{info.path}" if info.path else f"/{mount.name}"
    return FileInfo(path, info.size, info.version, info.mtime, info.is_dir)
