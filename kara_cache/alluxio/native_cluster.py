"""A real Alluxio cluster with the verbs that files of the fsspec face need, as `CacheClient` has them.

Paths are full urls of the store, here where `CacheClient` has kara paths. Versions are Alluxio's content
hash, or else size and time: Alluxio has no read of a given version, so one that changes while it is open
is noticed only where its length does not fit.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from time import monotonic
from typing import IO, Any, TypeVar

from kara_cache.alluxio.native_members import NativeMembers
from kara_cache.alluxio.native_route import NativeRoute
from kara_cache.alluxio.native_worker import NativeHttp, NativeWorker
from kara_cache.alluxio.operation_options import CPOption, RMOption
from kara_cache.alluxio.path_status import AlluxioPathStatus, status_of_document
from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientCounts, ClientMetrics
from kara_cache.config import ClientConfig
from kara_cache.errors import KaraError
from kara_cache.failover import Fallback
from kara_cache.file_writes import CacheWriter
from kara_cache.kara_url import scheme_of
from kara_cache.page_buffers import fresh_memory
from kara_cache.process_events import watch
from kara_cache.reading.read_ahead import ReadAhead, SequentialReader
from kara_cache.ufs.base import FileInfo, UnderStore

T = TypeVar("T")

_READS_AT_ONCE = 16  # of a batch; chosen by feel
_CHUNK_BYTES = 1 << 20


class NativeCluster:
    """Thread-safe, usable after `fork()`. What methods raise is what `CacheClient` raises."""

    def __init__(self, config: ClientConfig, virtual_nodes: int, fallback: Fallback) -> None:
        """`fallback` gives the caller's own store for a url; LookupError where there is none."""
        self._members = NativeMembers(config, virtual_nodes)
        self._http = NativeHttp(
            connections=config.connections_per_worker, connect_timeout_s=config.connect_timeout_s
        )
        self._metrics = ClientMetrics()
        self._route = NativeRoute(
            self._members,
            self._http,
            self._metrics,
            timeout_s=config.timeout_s,
            suspect_s=config.suspect_s,
            fallback=fallback,
        )
        self._read_ahead = ReadAhead(
            self._read_known,
            self._metrics,
            at_hand=lambda file, start, stop: False,
            window_bytes=config.read_ahead_bytes,
            timeout_s=config.timeout_s,
        )
        watch(self)

    def __repr__(self) -> str:
        return f"<NativeCluster {self._members.ring()}>"

    # -- looking -----------------------------------------------------------------------------------

    def status(self, path: str) -> AlluxioPathStatus | None:
        """As a worker tells; None where only the store could be asked."""
        return self._run(path, lambda worker: status_of_document(worker.info(path)), lambda *_: None)

    def statuses(self, path: str) -> list[AlluxioPathStatus] | None:
        """Of a directory's children, or of a file itself; None where only the store could be asked."""

        def ask(worker: NativeWorker) -> list[AlluxioPathStatus]:
            return [status_of_document(document) for document in worker.files(path)]

        return self._run(path, ask, lambda *_: None)

    def info(self, path: str) -> FileInfo:
        return self._run(
            path,
            lambda worker: _info(path, status_of_document(worker.info(path))),
            lambda store, below: replace(store.info(below), path=path),
        )

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        """The direct children, sorted by path; with `recursive` every file below, no directories."""
        for entry in self._children(path):
            if recursive and entry.is_dir:
                yield from self.list(entry.path, recursive=True)
            else:
                yield entry

    def _children(self, path: str) -> Sequence[FileInfo]:
        def ask(worker: NativeWorker) -> Sequence[FileInfo]:
            found = [status_of_document(document) for document in worker.files(path)]
            if len(found) == 1 and _is_itself(found[0], path):
                return [_info(path, found[0])]
            base = path.rstrip("/")
            return [_info(f"{base}/{_name(status)}", status) for status in found]

        def from_store(store: UnderStore, below: str) -> Sequence[FileInfo]:
            cut = len(below.rstrip("/"))
            return [
                replace(
                    file,
                    path=path.rstrip("/") + file.path[cut:] if cut else f"{path.rstrip('/')}/{file.path}",
                )
                for file in store.list(below)
            ]

        return sorted(self._run(path, ask, from_store), key=lambda file: file.path)

    # -- reading -----------------------------------------------------------------------------------

    def read_into(self, file: FileInfo, start: int, buffer: memoryview | bytearray) -> int:
        """Fills `buffer` from byte `start` and returns how many bytes were there, short only at the end."""
        if file.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file.path)
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), file.size - start))]
        if not len(view):
            return 0
        begin = monotonic()

        def ask(worker: NativeWorker) -> int:
            worker.range_into(file.path, start, view)
            self._metrics.worker_read(len(view), 0, monotonic() - begin, hit=False)
            return len(view)

        def from_store(store: UnderStore, below: str) -> int:
            count = store.read_into(below, start, view)
            self._metrics.store_read(count, 0, monotonic() - begin)
            return count

        try:
            return self._run(file.path, ask, from_store)
        except BaseException:
            self._metrics.failed_read(monotonic() - begin)
            raise

    def read(self, file: FileInfo, start: int, length: int) -> bytes:
        memory = fresh_memory(max(0, min(length, file.size - start)))
        return bytes(memory[: self.read_into(file, start, memory)])

    def read_ranges(self, ranges: Sequence[tuple[FileInfo, int, int]]) -> Sequence[memoryview]:
        """The bytes of each (file, start, length) in this order; raises for the first that cannot be had."""
        with ThreadPoolExecutor(_READS_AT_ONCE, "alluxio-read") as pool:
            return [memoryview(data) for data in pool.map(lambda wanted: self.read(*wanted), ranges)]

    def open_reader(self, file: FileInfo, *, position: int = -1) -> SequentialReader:
        """For many reads of one file: what is read in sequence is fetched in advance. Close it after use."""
        return self._read_ahead.open(CachedFile(file), position)

    def open_file(self, path: str) -> tuple[FileInfo, None]:
        """As `CacheClient` has it; Alluxio has no answer for both, so there is never content."""
        info = self.info(path)
        if info.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return info, None

    def open_range(self, path: str, start: int, length: int) -> tuple[FileInfo, None]:
        return self.open_file(path)

    def look_up(
        self, paths: Sequence[str], *, contents: bool = False
    ) -> dict[str, tuple[FileInfo, None] | Exception]:
        """As `CacheClient` has it, with a request for each file."""

        def look_up(path: str) -> tuple[FileInfo, None] | Exception:
            try:
                return self.open_file(path)
            except (KaraError, OSError, ValueError) as error:
                return error

        with ThreadPoolExecutor(_READS_AT_ONCE, "alluxio-look-up") as pool:
            return dict(zip(paths, pool.map(look_up, paths), strict=True))

    def _read_known(self, file: CachedFile, start: int, view: memoryview) -> int:
        return self.read_into(file.info, start, view)

    # -- changing ----------------------------------------------------------------------------------

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        with self.open_writer(path) as writer:
            writer.write(data)
            return writer.commit()

    def open_writer(self, path: str, *, append: bool = False) -> CacheWriter:
        """A file written in pieces; nothing is sent before `commit`. Alluxio cannot append."""
        if append:
            raise io.UnsupportedOperation(f"{path}: Alluxio replaces files as a whole, it cannot append")
        return CacheWriter(lambda spool, size: self._replace(path, spool, size))

    def _replace(self, path: str, spool: IO[bytes], size: int) -> FileInfo:
        def put(worker: NativeWorker) -> FileInfo:
            worker.put(path, _chunks(spool))
            return FileInfo(path, size, "")

        def to_store(store: UnderStore, below: str) -> FileInfo:
            with store.open_writer(below) as writer:
                for chunk in _chunks(spool):
                    writer.write(chunk)
                return replace(writer.commit(), path=path)

        return self._run(path, put, to_store)

    def write_page(self, path: str, index: int, page: bytes) -> None:
        self._run(path, lambda worker: worker.put_page(path, index, page), None)

    def delete(self, path: str) -> None:
        self.remove(path, RMOption(remove_alluxio_only=False))

    def remove(self, path: str, option: RMOption) -> None:
        own = None if option.remove_alluxio_only or option.recursive else _delete
        self._run(path, lambda worker: worker.remove(path, asdict(option)), own, repeatable=False)

    def make_directory(self, path: str) -> None:
        self._run(
            path,
            lambda worker: worker.make_directory(path),
            lambda store, below: store.make_directory(below),
        )

    def touch(self, path: str) -> None:
        self._run(path, lambda worker: worker.touch(path), _touch)

    def move(self, path: str, target: str) -> None:
        self._run(path, lambda worker: worker.move(path, target), None, repeatable=False)

    def copy(self, path: str, target: str, option: CPOption) -> None:
        self._run(path, lambda worker: worker.copy(path, target, asdict(option)), None)

    def free(self, path: str, *, recursive: bool = False) -> tuple[int, int]:
        """Drops the cached pages; how many that were Alluxio does not tell."""
        self.remove(path, RMOption(recursive=recursive, remove_alluxio_only=True))
        return 0, 0

    def load(self, path: str, operation: str, *, verbose: bool | None = None) -> dict[str, Any]:
        """`operation` is submit, progress or stop; what a worker answers."""
        return self._run(path, lambda worker: worker.load(path, operation, verbose=verbose), None)

    # -- counting, and the end ---------------------------------------------------------------------

    @property
    def metrics(self) -> ClientCounts:
        return self._metrics.snapshot()

    def close(self) -> None:
        self._read_ahead.close()
        self._http.close()
        self._members.close()

    def after_fork(self) -> None:
        self._metrics.after_fork()
        self._members.after_fork()
        self._read_ahead.after_fork()

    def at_exit(self) -> None:
        """Nothing: counts stay in this process."""

    def _run(
        self,
        path: str,
        ask: Callable[[NativeWorker], T],
        store: Callable[[UnderStore, str], T] | None,
        *,
        repeatable: bool = True,
    ) -> T:
        if scheme_of(path) is None:
            raise ValueError(f"{path!r}: Alluxio takes full urls of the store, scheme://...")
        return self._route.run(path, ask, store, repeatable=repeatable)


def _info(path: str, status: AlluxioPathStatus) -> FileInfo:
    if status.type == "directory":
        return FileInfo(path, 0, "", is_dir=True)
    time_ms = status.last_modification_time_ms
    version = status.content_hash or (f"{time_ms}-{status.length}" if time_ms else "")
    return FileInfo(path, status.length, version, time_ms / 1000 if time_ms else None)


def _name(status: AlluxioPathStatus) -> str:
    return (status.ufs_path or status.path or status.name).rstrip("/").rpartition("/")[2]


def _is_itself(status: AlluxioPathStatus, path: str) -> bool:
    """Whether the listing of a path is the one of a file, which lists itself."""
    return status.type == "file" and _below_scheme(status.ufs_path) == _below_scheme(path)


def _below_scheme(url: str) -> str:
    """Without its scheme, which is spelled s3 by one and s3a by another."""
    return url.partition("://")[2].rstrip("/")


def _delete(store: UnderStore, below: str) -> None:
    store.delete(below)


def _touch(store: UnderStore, below: str) -> None:
    store.write(below, b"")


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk
