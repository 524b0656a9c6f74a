"""`AlluxioFileSystem` as alluxiofs 1.0.17 has it, for fsspec and for programs that call it directly."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from kara_cache.alluxio.client import AlluxioClient
from kara_cache.alluxio.operation_options import CPOption, RMOption
from kara_cache.alluxio.options import read_options, target_of
from kara_cache.alluxio.tree import AlluxioTree
from kara_cache.kara_file import KaraFile
from kara_cache.kara_file_writer import KaraFileWriter
from kara_cache.kara_url import scheme_of


class AlluxioFileSystem(AlluxioTree):
    """Files of a store, read through the cache; the store itself answers where no worker can.

    Also in the middle of an open file. What is missing or forbidden stays FileNotFoundError and
    PermissionError, whoever says so.
    """

    def __init__(
        self,
        preload_path: str | None = None,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fs: Any = None,
        logger: logging.Logger | None = None,
        **options: Any,  # checked by `read_options`
    ) -> None:
        """With neither `etcd_hosts` nor `worker_hosts`, this user's private worker.

        Args:
            preload_path: Is loaded before the constructor returns; a failure is logged.
            target_protocol: Scheme of the store that names belong to ("s3").
            target_options: The caller's own options for it, in the words of its fsspec class.
            fs: In place of both, a filesystem of fsspec: its protocol and its options are taken.
            logger: For what this class has to say; the package's own logger is `setup_logger`'s.
            options: Keywords of alluxiofs 1.0.17 and of `ClientConfig`; anything else is a ConfigError.
        """
        if fs is not None and target_protocol is not None:
            raise ValueError("fs and target_protocol are both set: the store is described once")
        if fs is not None:
            target_protocol, target_options = target_of(fs)
        super().__init__(
            read_options(options, stacklevel=3),  # past fsspec's metaclass
            target_protocol=target_protocol,
            target_options=target_options,
        )
        self.logger = logger or logging.getLogger(__name__)
        self.target_protocol = target_protocol
        if preload_path is not None and not self.alluxio.load(preload_path):
            self.logger.error("preload of %s: not all of it is in the cache", preload_path)

    @property
    def alluxio(self) -> AlluxioClient:
        """Load jobs and what else is asked by full urls, over the same connections."""
        return AlluxioClient.over(self, self.logger)

    def ls(self, path: str, detail: bool = False, *, refresh: bool = False) -> list[Any]:
        """Names that every method takes, or dicts of them."""
        return super().ls(path, detail=detail, refresh=refresh)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> KaraFile | KaraFileWriter:
        """As `open`, for binary files, and as it called without it."""
        return super()._open(self._strip(path), mode, block_size, autocommit, cache_options, **kwargs)

    def cat_file(self, path: str, start: int | None = 0, end: int | None = None) -> bytes:
        return super().cat_file(path, start, end)

    def head(  # type: ignore[override]
        self, path: str, num_of_bytes: int = 1024, *, size: int | None = None
    ) -> bytes:
        return super().head(path, num_of_bytes if size is None else size)

    def tail(  # type: ignore[override]
        self, path: str, num_of_bytes: int = 1024, *, size: int | None = None
    ) -> bytes:
        return super().tail(path, num_of_bytes if size is None else size)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> bool:  # type: ignore[override]
        """Stores without directories keep none: there, it exists once a file is in it."""
        super().mkdir(path, create_parents, **kwargs)
        return True

    def touch(self, path: str, truncate: bool = True) -> bool:  # type: ignore[override]
        """Makes an empty file; an existing one becomes empty, as fsspec has it."""
        super().touch(path, truncate)
        return True

    def rm(  # type: ignore[override]
        self,
        path: Any,
        recursive: bool = False,
        recursive_alias: bool = False,
        remove_alluxio_only: bool = False,
        delete_mount_point: bool = False,
        sync_parent_next_time: bool = False,
        remove_unchecked_option_char: bool = False,
        *,
        maxdepth: int | None = None,
        recursiveAlias: bool = False,
        removeAlluxioOnly: bool = False,
        deleteMountPoint: bool = False,
        syncParentNextTime: bool = False,
        removeUncheckedOptionChar: bool = False,
    ) -> bool:
        """Deletes files; with `remove_alluxio_only` drops their cached pages and leaves the files.

        Args:
            recursive: Whole directories; `recursive_alias` is the same.
            delete_mount_point: PermissionError: mounts are the operator's.
            sync_parent_next_time: Without effect, as listings are the store's.
            remove_unchecked_option_char: Without effect, too.
            maxdepth: fsspec's.
            recursiveAlias: And the others in this spelling: as Alluxio's documentation has them.
        """
        option = RMOption(
            recursive=recursive or recursive_alias or recursiveAlias,
            sync_parent_next_time=sync_parent_next_time or syncParentNextTime,
            remove_unchecked_option=remove_unchecked_option_char or removeUncheckedOptionChar,
            remove_alluxio_only=remove_alluxio_only or removeAlluxioOnly,
            delete_mount_point=delete_mount_point or deleteMountPoint,
        )
        if maxdepth is not None and not option.remove_alluxio_only:
            super().rm(path, recursive=option.recursive, maxdepth=maxdepth)
        else:
            for name in self.expand_path(path):
                self.remove(name, option)
        return True

    def mv(  # type: ignore[override]
        self, path1: Any, path2: Any, recursive: bool | None = None, maxdepth: int | None = None
    ) -> bool:
        """A directory goes with everything in it."""
        if isinstance(path1, list) or recursive is not None or maxdepth is not None:
            super().mv(path1, path2, recursive=bool(recursive), maxdepth=maxdepth)
        else:
            self.move_all(path1, path2)
        return True

    def move(self, path1: Any, path2: Any, **kwargs: Any) -> bool:
        return self.mv(path1, path2, **kwargs)

    rename = move

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        recursiveAlias: bool = False,
        force: bool = False,
        thread: int | None = None,
        bufferSize: int | str | None = None,
        preserve: bool | None = None,
        **kwargs: Any,
    ) -> bool:
        """A file that exists is replaced as a whole. Of Alluxio's options only `recursive` changes anything.

        `kwargs` are fsspec's: `maxdepth`, `on_error`.
        """
        option = CPOption(recursive or recursiveAlias, forced=force, thread=thread)
        if kwargs or isinstance(path1, list):
            return super().copy(path1, path2, recursive=option.recursive, **kwargs)
        self.copy_all(path1, path2, option)
        return True

    def cp_file(self, path1: str, path2: str, recursive: bool = False, **kwargs: Any) -> bool:  # type: ignore[override]
        if recursive:
            return self.copy(path1, path2, recursive=True)
        super().cp_file(path1, path2)
        return True

    def upload(self, lpath: Any, rpath: Any, recursive: bool = False, **kwargs: Any) -> bool:
        """From a local file to the store, in the order that is documented.

        alluxiofs 1.0.17 itself wants the url first: where one of the two is a url, that is the store's.
        """
        local, remote = _local_and_remote(lpath, rpath)
        return super().upload(local, remote, recursive, **kwargs)

    def download(  # type: ignore[override]
        self, lpath: Any, rpath: Any, recursive: bool = False, **kwargs: Any
    ) -> int:
        """To a local file, which is named first, from the store: how many bytes that was. See `upload`."""
        local, remote = _local_and_remote(lpath, rpath)
        return super().download(remote, local, recursive, **kwargs)

    def upload_data(self, path: str = "", data: Any = b"", *, lpath: str = "") -> bool:
        """`path` is in the store, and so is `lpath`, as the documentation calls it."""
        self.pipe_file(path or lpath, data)
        return True

    def write(self, path: str, value: Any) -> bool:
        return self.upload_data(path, value)

    def download_data(self, lpath: str) -> io.BytesIO:
        return io.BytesIO(self.cat_file(lpath))

    def download_batch_data(self, lpath: Sequence[str]) -> list[bytes]:
        """All files, in the order of the paths; raises for the first that cannot be read."""
        return self.cat_ranges(list(lpath), None, None, on_error="raise")

    def load_file_from_ufs_to_alluxio(self, path: str, **kwargs: Any) -> bool:
        """`AlluxioClient.load`."""
        return self.alluxio.load(self.unstrip_protocol(path), **kwargs)

    def get_error_metrics(self) -> dict[str, dict[str, Any]]:
        """Failed attempts of this process by their reason, as `read_<reason>`; what was asked for may still
        have come, from another worker or the store. Messages are not kept: `last_errors` is empty."""
        counts = {f"read_{reason}": count for reason, count in self.client.metrics.fallbacks.items()}
        return {"error_counts": counts, "last_errors": {}}


def _local_and_remote(lpath: Any, rpath: Any) -> tuple[Any, Any]:
    """Raises ValueError where both are urls."""
    first, second = _is_url(lpath), _is_url(rpath)
    if first and second:
        raise ValueError(f"{lpath!r} and {rpath!r} are both urls: one of them is a local file")
    return (rpath, lpath) if first else (lpath, rpath)


def _is_url(path: Any) -> bool:
    return isinstance(path, str) and scheme_of(path) is not None
