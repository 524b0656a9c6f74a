"""Changes of the stores: what Alluxio clients ask for beyond reading. Blocking; for threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from kara_cache.ufs.base import FileInfo
from kara_worker.mounted_stores import MountedStores

_BUFFER_BYTES = 8 << 20  # of a copy; S3's own parts are as long


class StoreChanges:
    """Thread-safe. Paths are kara paths; methods return the files whose content changed or went away."""

    def __init__(self, stores: MountedStores) -> None:
        self._stores = stores

    def make_directory(self, path: str) -> None:
        self._stores.make_directory(path)

    def touch(self, path: str) -> list[str]:
        """An empty file where there is none; what is there stays as it is."""
        try:
            self._stores.info(path)
        except FileNotFoundError:
            mount, relative = self._stores.writable(path)
            self._stores.store(mount).write(relative, b"")
        else:
            self._stores.writable(path)
        return [path]

    def remove(self, path: str, *, recursive: bool) -> list[str]:
        """A file, an empty directory, or with `recursive` a directory and all below."""
        info = self._stores.info(path)
        if not info.is_dir or not recursive:
            self._stores.delete(path)
            return [path]
        removed = []
        for entry in self._tree(path):
            try:
                self._stores.delete(entry.path)
            except FileNotFoundError:
                if not entry.is_dir:  # a prefix of an object store is gone with its last file
                    raise
            removed.append(entry.path)
        return removed

    def copy(self, source: str, target: str, *, recursive: bool, overwrite: bool) -> list[str]:
        """A file, or with `recursive` a directory; into the target where that is a directory, as `cp`."""
        info = self._stores.info(source)
        if info.is_dir and not recursive:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), source)
        target = self._place(source, target, overwrite=overwrite)
        if target == source or target.startswith(f"{source}/"):
            raise ValueError(f"{source} cannot be copied into itself")
        if not info.is_dir:
            self._copy_file(info, target)
            return [target]
        written = []
        self._stores.make_directory(target)
        for entry in self._stores.list(source, recursive=True):
            place = f"{target}{entry.path[len(source) :]}"
            self._copy_file(entry, place)
            written.append(place)
        return written

    def copy_file(self, source: str, target: str) -> None:
        """A file to exactly this place, whatever is there."""
        info = self._stores.info(source)
        if info.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), source)
        self._copy_file(info, target)

    def move(self, source: str, target: str) -> list[str]:
        """As a copy that must not replace anything, and a removal: stores have no common rename."""
        self._stores.writable(source)
        copied = self.copy(source, target, recursive=True, overwrite=False)
        return copied + self.remove(source, recursive=True)

    def _place(self, source: str, target: str, *, overwrite: bool) -> str:
        self._stores.writable(target)
        there = self._find(target)
        if there is not None and there.is_dir:
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
            there = self._find(target)
        if there is not None and (there.is_dir or not overwrite):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        return target

    def _find(self, path: str) -> FileInfo | None:
        try:
            return self._stores.info(path)
        except FileNotFoundError:
            return None

    def _copy_file(self, info: FileInfo, target: str) -> None:
        source_mount, source = self._stores.locate(info.path)
        target_mount, relative = self._stores.writable(target)
        buffer = memoryview(bytearray(min(_BUFFER_BYTES, max(1, info.size))))
        with self._stores.store(target_mount).open_writer(relative) as writer:
            at = 0
            while at < info.size:
                view = buffer[: info.size - at]
                count = self._stores.read_into(source_mount, source, at, view, info.version, progress=_ignore)
                if not count:
                    raise OSError(errno.EIO, f"ended at {at} of {info.size} bytes", info.path)
                writer.write(view[:count])
                at += count
            writer.commit()

    def _tree(self, path: str) -> Iterator[FileInfo]:
        """Everything below and the directory itself, contents before what holds them."""
        for entry in list(self._stores.list(path, recursive=False)):
            if entry.is_dir:
                yield from self._tree(entry.path)
            else:
                yield entry
        yield FileInfo(path, 0, "", is_dir=True)


def _ignore(_: int) -> None:
    """Progress that nobody waits for."""
