"""What AlluxioClient and AlluxioFileSystem stand on: files by the urls of their store, in either dialect."""

from __future__ import annotations

import errno
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

from fsspec.utils import stringify_path, tokenize

from kara_cache.alluxio.native_attachment import NativeAttachment
from kara_cache.alluxio.native_cluster import NativeCluster
from kara_cache.alluxio.operation_options import CPOption, RMOption
from kara_cache.alluxio.options import AlluxioOptions
from kara_cache.alluxio.path_status import AlluxioPathStatus, status_of
from kara_cache.filesystem import KaraFileSystem
from kara_cache.ufs.base import FileInfo

PROTOCOL = "alluxiofs"
PREFIXES = ("alluxiofs::", "alluxio::", "alluxiofs://", "alluxio://")


class AlluxioTree(KaraFileSystem):
    """Names are spelled as the store's own fsspec class does: `bucket/key` of s3, `/data/key` of files.

    Without a `target_protocol` they are full urls. Every method takes either, and `alluxiofs://` before it.
    """

    protocol: str | tuple[str, ...] = PROTOCOL  # type: ignore[assignment,misc]  # of an instance, see below
    _native: ClassVar[dict[Hashable, NativeAttachment]] = {}

    def __init__(
        self,
        options: AlluxioOptions,
        *,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
    ) -> None:
        given = {**options.fsspec, **options.stores, **options.client}
        super().__init__(target_protocol=target_protocol, target_options=target_options, **given)
        if target_protocol is not None:
            # Ray takes a filesystem for s3:// urls only if it says that s3 is a protocol of its own.
            self.protocol = (PROTOCOL, target_protocol)
        if options.dialect == "alluxio":
            stores = dict(options.stores)
            if self._names.scheme is not None:
                stores[self._names.scheme] = target_options or {}
            self._attachment = self._attach(options, stores)

    @property
    def cluster(self) -> NativeCluster | None:
        """The real Alluxio cluster that is spoken to; None where it is a cache of ours."""
        attachment = self._attachment
        return attachment.cluster if isinstance(attachment, NativeAttachment) else None

    def _attach(self, options: AlluxioOptions, stores: dict[str, Any]) -> NativeAttachment:
        """Instances with the same options share one, as those of `KaraTree` do."""
        config = self._attachment.config
        key = config, options.virtual_nodes, tokenize(stores)
        found = self._native.get(key)
        if found is None:
            made = NativeAttachment(config, stores=stores, virtual_nodes=options.virtual_nodes)
            found = self._native.setdefault(key, made)
        return found

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return super()._strip_protocol(_without_prefix(stringify_path(path)))

    def _strip(self, path: Any) -> Any:
        if isinstance(path, list):
            return [self._strip(item) for item in path]
        return super()._strip(_without_prefix(stringify_path(path)))

    def unstrip_protocol(self, name: str) -> str:
        """The full url in the store, as Alluxio has it; of a path below a mount `alluxiofs://mount/rest`."""
        name = self._strip(name)
        return self._names.url(name) or f"{PROTOCOL}://{name}"

    def entry(self, file: FileInfo, name: str) -> dict[str, Any]:
        """fsspec's dict, and the keys of alluxiofs beside it; `name` is fsspec's, the whole name."""
        status = vars(status_of(file, self._names.url(name) or "")).copy()
        status["size"] = status.pop("length")
        return {**status, **super().entry(file, name)}

    def status(self, path: str) -> AlluxioPathStatus:
        """Of a file or directory, by its url."""
        cluster = self.cluster
        if cluster is not None and (told := cluster.status(self.kara_path(path))) is not None:
            return told
        return status_of(self.file_info(path), self.unstrip_protocol(path))

    def statuses(self, path: str) -> list[AlluxioPathStatus]:
        """Of a directory's children, or of a file itself."""
        cluster = self.cluster
        if cluster is not None and (told := cluster.statuses(self.kara_path(path))) is not None:
            return told
        base, url = self.kara_path(path), self.unstrip_protocol(path)
        return [
            status_of(file, url.rstrip("/") + file.path[len(base.rstrip("/")) :])
            for file in self.client.list(base)
        ]

    def free(self, path: str, *, recursive: bool = False) -> None:
        """Drops cached pages; the store is not touched."""
        self.client.free(self.kara_path(path), recursive=recursive)

    def remove(self, path: str, option: RMOption) -> None:
        """Deletes files, or drops their cached pages. Raises PermissionError for mounts."""
        if option.delete_mount_point:
            raise PermissionError(errno.EPERM, "mounts are in the configuration of the workers", path)
        recursive = option.recursive or option.recursiveAlias
        if option.remove_alluxio_only:
            self.free(path, recursive=recursive or self.isdir(path))
        elif self.cluster is not None:
            self.cluster.remove(self.kara_path(path), option)
        else:
            super().rm(path, recursive=recursive)

    def move_all(self, path: str, target: str) -> None:
        """Moves a file, or a directory with everything in it."""
        if self.cluster is not None:
            self.cluster.move(self.kara_path(path), self.kara_path(target))
        else:
            super().mv(path, target, recursive=self.isdir(path))

    def copy_all(self, path: str, target: str, option: CPOption) -> None:
        """Copies a file, or, if asked to, a directory with everything in it."""
        recursive = option.recursive or option.recursiveAlias
        if self.cluster is not None:
            self.cluster.copy(self.kara_path(path), self.kara_path(target), option)
        else:
            super().copy(path, target, recursive=recursive and self.isdir(path))


def _without_prefix(path: str) -> str:
    for prefix in PREFIXES:
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path
