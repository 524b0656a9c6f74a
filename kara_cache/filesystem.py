"""The cache as an fsspec filesystem: `kara://mount/path`, and `kara::<url>` over a store."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.core import get_compression
from fsspec.utils import isfilelike

from kara_cache.errors import KaraError, StaleVersion
from kara_cache.kara_file import KaraFile
from kara_cache.kara_file_writer import CompressedWriter, KaraFileWriter
from kara_cache.kara_tree import KaraTree
from kara_cache.local_copy import replacing
from kara_cache.ufs.base import FileInfo

COPY_BYTES = 4 << 20  # one step of a copy; fsspec's own block size
BATCH_BYTES = 256 << 20  # of ranges asked for together; some seconds of a slow network
REQUESTS_AT_ONCE = 16  # look-ups or deletions in flight for one call; chosen by feel, stores allow far more

_LOOKS = 3  # at files that are replaced while they are read; who does that all the time gets the error
_Content = TypeVar("_Content")
Span = tuple[str, "int | None", "int | None"]  # name, start and stop as in a slice


class KaraFileSystem(KaraTree):
    """Files of the stores, read through the cache. Options are those of `KaraTree`.

    Reads are of one version, checked against its checksums, and go to the store when no worker can
    answer. Writes go through to the store; readers see the old or the new version as a whole.
    """

    blocksize = COPY_BYTES

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in fsspec, and what is compressed on its way into a file is written as a whole, too."""
        if mode == "rb" and compression is None and not kwargs:
            return self._open_to_read(self._strip(path))
        codec = get_compression(path, compression)
        if codec is None or "b" not in mode or mode == "rb":
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        return CompressedWriter(self.open(path, mode, block_size, cache_options, **kwargs), codec)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        *,
        cache_type: str | None = None,
        size: int | None = None,
    ) -> KaraFile | KaraFileWriter:
        """`block_size`, `cache_type`, `cache_options` and `size` are accepted and ignored.

        Read-ahead adapts to how the file is read, and the cache is the worker's.

        Raises:
            FileExistsError: mode "xb"; checked before the first byte, not when the file is closed.
            io.UnsupportedOperation: mode "ab" where the store cannot append, and any other mode.
        """
        if mode == "rb":
            return self._open_to_read(self._strip(path))
        if mode not in {"wb", "xb", "ab"}:
            raise io.UnsupportedOperation(f"mode {mode!r}: files open for reading, writing or appending")
        if mode == "xb":
            self._refuse_existing(path)
        writer = self.client.open_writer(self.kara_path(path), append=mode == "ab")
        return KaraFileWriter(self, path, mode, writer, autocommit=autocommit)

    def _open_to_read(self, name: str) -> KaraFile:
        file, content = self.client.open_file(self._kara_path(name))
        return KaraFile(self, name, file, content=content)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Of one version; of the new one where the store replaces the file meanwhile."""
        full = self._kara_path(self._strip(path))
        return _looking_again(lambda: self._cat_file(full, start, end))

    def _cat_file(self, path: str, start: int | None, end: int | None) -> bytes:
        if start is None and end is None:
            file, content = self.client.open_file(path)
        elif end is not None and 0 <= (start or 0) < end:
            file, content = self.client.open_range(path, start or 0, end - (start or 0))
        else:
            file, content = self.client.open_file(path)
            content = None if content is None else content[start:end]
        return self.client.read(file, *_span(file, start, end)) if content is None else content

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        *,
        batch_size: int | None = None,
    ) -> list[Any]:
        """All ranges in one batch; each file that occurs is looked up once, so its ranges are of one version.

        `max_gap` and `batch_size` are accepted and ignored: the worker serves ranges from its pages,
        and joining them would only copy more.
        """
        if not isinstance(paths, list):
            raise TypeError(f"paths must be a list, got {type(paths).__name__}")
        spans = [span if isinstance(span, list) else [span] * len(paths) for span in (starts, ends)]
        if {len(span) for span in spans} != {len(paths)}:
            raise ValueError(f"{len(paths)} paths, {len(spans[0])} starts and {len(spans[1])} ends")
        names = self._strip(paths)
        return self._cat_batch(list(zip(names, *spans, strict=True)), raising=on_error == "raise")

    def cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        *,
        maxdepth: int | None = None,
    ) -> Any:
        """Bytes of one path, or a mapping of bytes for a list, a glob or a directory, read in batches."""
        names = self.expand_path(path)
        if recursive:
            names = sorted({file for name in names for file in self.find(name, maxdepth=maxdepth)})
        if isinstance(path, (str, os.PathLike)) and names == [self._strip(path)]:
            return self.cat_file(names[0])
        contents = self._cat_batch([(name, None, None) for name in names], raising=on_error == "raise")
        return {
            name: content
            for name, content in zip(names, contents, strict=True)
            if on_error != "omit" or not isinstance(content, Exception)
        }

    def head(self, path: str, size: int = 1024) -> bytes:
        return self.cat_file(path, 0, size)

    def tail(self, path: str, size: int = 1024) -> bytes:
        return self.cat_file(path, -size) if size else b""

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite") -> None:
        """Replaces the file with `value`. Mode "create" raises FileExistsError instead, not atomically."""
        if mode == "create":
            self._refuse_existing(path)
        if self._intrans:
            with self.open(path, "wb") as deferred:
                deferred.write(value)
            return
        self.client.write(self.kara_path(path), value)
        self.invalidate_cache(path)

    def touch(self, path: str, truncate: bool = True) -> None:
        if not truncate and self.exists(path):
            raise NotImplementedError(f"{path}: stores do not change the time of a file without writing it")
        self.pipe_file(path, b"")

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        file = self.file_info(path1)
        if file.is_dir:
            self.makedirs(path2, exist_ok=True)
        elif file.path != self.kara_path(path2):
            with self.open(path2, "wb") as out:
                self._copy(path1, file, out, DEFAULT_CALLBACK)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Copies, then deletes; nothing is deleted before everything is copied."""
        if not isinstance(path1, list) and self.kara_path(path1) == self.kara_path(path2):
            return  # spelled differently, it would be copied onto itself and then deleted
        super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth)

    def rm_file(self, path: str) -> None:
        self.client.delete(self.kara_path(path))
        self.invalidate_cache(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Deletes files, and with `recursive` directories. A whole mount is refused, with nothing deleted."""
        for name in self.expand_path(path):
            if not self.isdir(name):
                self.rm_file(name)
            elif recursive:
                self._rm_tree(name, maxdepth)
            else:
                raise IsADirectoryError(errno.EISDIR, "a directory needs recursive=True", name)

    def rmdir(self, path: str) -> None:
        if not self.info(path)["type"] == "directory":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        self.rm_file(path)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Stores without directories keep none: there, it exists once a file is in it."""
        self._refuse_existing(path)
        if not create_parents:
            self.info(self._parent(path))
        self.makedirs(path, exist_ok=True)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if not exist_ok:
            self._refuse_existing(path)
        self.client.make_directory(self.kara_path(path))
        self.invalidate_cache(path)

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Callback = DEFAULT_CALLBACK, outfile: Any = None
    ) -> None:
        """A copy on the local disk, of one version, there as a whole or not at all."""
        file = self.file_info(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is not None:
            self._copy(rpath, file, outfile, callback)
        elif file.is_dir:
            os.makedirs(lpath, exist_ok=True)
        else:
            with replacing(lpath) as out:
                self._copy(rpath, file, out, callback)

    def upload(self, lpath: Any, rpath: Any, recursive: bool = False, **kwargs: Any) -> bool:
        """`put`: from local `lpath` to `rpath` in the store. Returns True."""
        self.put(lpath, rpath, recursive=recursive, **kwargs)
        return True

    def download(self, rpath: Any, lpath: Any, recursive: bool = False, **kwargs: Any) -> int:
        """`get`: from `rpath` in the store to local `lpath`. Returns how many bytes that was.

        The order is fsspec's, and what alluxiofs 1.0.17 does, whatever it calls its arguments.
        """
        size = sum(int(self.du(name)) for name in self.expand_path(rpath))
        self.get(rpath, lpath, recursive=recursive, **kwargs)
        return size

    def upload_data(self, path: str, data: Any) -> bool:
        self.pipe_file(path, data)
        return True

    write = upload_data

    def download_data(self, path: str) -> io.BytesIO:
        return io.BytesIO(self.cat_file(path))

    def read(self, path: str) -> bytes:
        return self.cat_file(path)

    def copy(self, path1: Any, path2: Any, *args: Any, **kwargs: Any) -> bool:
        super().copy(path1, path2, *args, **kwargs)
        return True

    def move(self, path1: str, path2: str, **kwargs: Any) -> bool:
        self.mv(path1, path2, **kwargs)
        return True

    rename = move

    def _cat_batch(self, spans: list[Span], *, raising: bool) -> list[Any]:
        """The bytes of each span in order, or, unless `raising`, the exception in its place."""
        if raising:
            return _looking_again(lambda: self._cat_looked_up(spans, raising=True))
        return self._cat_looked_up(spans, raising=False)

    def _cat_looked_up(self, spans: list[Span], *, raising: bool) -> list[Any]:
        whole = all(start is None and stop is None for _, start, stop in spans)
        files = self._look_up(dict.fromkeys(name for name, _, _ in spans), contents=whole)
        contents: list[Any] = [None] * len(spans)
        wanted = {}
        for index, (name, start, stop) in enumerate(spans):
            found = files[name]
            if isinstance(found, Exception):
                if raising:
                    raise found
                contents[index] = found
            elif found[1] is not None:
                contents[index] = found[1][start:stop]
            else:
                wanted[index] = (found[0], *_span(found[0], start, stop))
        for batch in _batches(wanted):
            asked = [wanted[index] for index in batch]
            try:
                views: Iterable[Any] = self.client.read_ranges(asked)
            except (KaraError, OSError):
                if raising:
                    raise
                views = map(self._read_alone, asked)  # which of them failed, the batch does not say
            for index, view in zip(batch, views, strict=True):
                contents[index] = view if isinstance(view, Exception) else bytes(view)
        return contents

    def _look_up(
        self, names: Iterable[str], *, contents: bool
    ) -> dict[str, tuple[FileInfo, bytes | None] | Exception]:
        """What is wrong with one of them is in its place."""
        found: dict[str, tuple[FileInfo, bytes | None] | Exception] = {}
        paths: dict[str, str] = {}
        for name in names:
            try:
                paths[name] = self._kara_path(name)
            except (KaraError, OSError, ValueError) as error:  # noqa: PERF203 - a few microseconds of many
                found[name] = error
        answers = self.client.look_up([*paths.values()], contents=contents)
        return found | {name: answers[path] for name, path in paths.items()}

    def _read_alone(self, wanted: tuple[FileInfo, int, int]) -> Any:
        try:
            return self.client.read(*wanted)
        except (KaraError, OSError) as error:
            return error

    def _copy(self, path: str, file: FileInfo, out: Any, callback: Callback) -> None:
        callback.set_size(file.size)
        buffer = memoryview(bytearray(min(COPY_BYTES, file.size)))
        with KaraFile(self, self._strip(path), file) as source:
            while count := source.readinto(buffer):
                out.write(buffer[:count])
                callback.relative_update(count)

    def _rm_tree(self, top: str, maxdepth: int | None) -> None:
        if self.kara_path(top).count("/") == 1:
            raise PermissionError(errno.EPERM, f"a whole mount; to empty it, delete {top}/*", top)
        found = self.find(top, maxdepth=maxdepth, withdirs=True, detail=True)
        directories = [name for name, entry in found.items() if entry["type"] == "directory"]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, "kara-rm") as pool:
            for _ in pool.map(self.rm_file, found.keys() - directories):
                pass
        for name in sorted(directories, reverse=True):
            # a prefix in an object store went with the last file in it
            with contextlib.suppress(FileNotFoundError):
                self.rm_file(name)

    def _refuse_existing(self, path: str) -> None:
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.kara_path(path))


def _looking_again(read: Callable[[], _Content]) -> _Content:
    """What `read` returns, which looks files up itself: who names a path has no version to stay with."""
    for _ in range(_LOOKS - 1):
        with contextlib.suppress(StaleVersion):
            return read()
    return read()


def _span(file: FileInfo, start: int | None, stop: int | None) -> tuple[int, int]:
    """Start and length of a slice of the file, negative bounds counting from its end."""
    first, last, _ = slice(start, stop).indices(file.size)
    return first, max(0, last - first)


def _batches(wanted: Mapping[int, tuple[FileInfo, int, int]]) -> Iterator[list[int]]:
    """Indexes of ranges to ask for together: what is received is copied once, and this bounds the copy."""
    batch: list[int] = []
    left = BATCH_BYTES
    for index, (_, _, length) in wanted.items():
        if batch and length > left:
            yield batch
            batch, left = [], BATCH_BYTES
        batch.append(index)
        left -= length
    if batch:
        yield batch
