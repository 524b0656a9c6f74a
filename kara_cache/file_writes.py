"""Writes through the cache: spooled here and sent when committed, so that another worker can take over."""

from __future__ import annotations

import errno
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import IO, TypeVar

from kara_cache.errors import CacheError, WorkerBusy, WorkerUnavailable
from kara_cache.failover import Call, Detours, Failover
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.ufs.base import FileInfo, UnderStore

T = TypeVar("T")
SPOOL_BYTES = 8 << 20  # in memory; what is longer goes to a temporary file
_CHUNK_BYTES = 1 << 20
_NEVER_SENT = frozenset({"refused", "dns", "unreachable", "tls"})  # failures before the request was out


class CacheWriter:
    """An `UnderStoreWriter` over a spool. One thread at a time."""

    def __init__(self, send: Callable[[IO[bytes], int], FileInfo]) -> None:
        self._send = send
        self._spool: IO[bytes] | None = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115
        self._written: FileInfo | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return self._open_spool().write(data)

    def commit(self) -> FileInfo:
        """Sends everything. Raises what the store says; then nothing of it is visible."""
        if self._written is None:
            spool = self._open_spool()
            try:
                self._written = self._send(spool, spool.seek(0, io.SEEK_END))
            finally:
                self.abort()
        return self._written

    def abort(self) -> None:
        """Idempotent; does nothing after `commit`."""
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None and self._spool is not None:
            self.commit()
        self.abort()

    def _open_spool(self) -> IO[bytes]:
        if self._spool is None:
            raise ValueError("write to a writer that was committed or aborted")
        return self._spool


class FileWrites:
    """Changes of files. Thread-safe.

    Replacing and deleting may be asked of a second worker when the first did not answer: doing it
    twice changes nothing. An append is never sent twice.
    """

    def __init__(
        self, failover: Failover, *, timeout_s: float, changed: Callable[[str], None] = lambda _: None
    ) -> None:
        """`timeout_s` bounds each step of an upload, not the whole.

        `changed` is told the path after each change, also when it failed: it may have taken effect.
        """
        self._failover = failover
        self._timeout_s = timeout_s
        self._changed = changed

    def open_writer(self, path: str, *, append: bool) -> CacheWriter:
        if append:
            return CacheWriter(lambda spool, size: self._told(path, lambda: self._append(path, spool, size)))
        return CacheWriter(lambda spool, size: self._told(path, lambda: self._replace(path, spool, size)))

    def _told(self, path: str, change: Callable[[], T]) -> T:
        try:
            return change()
        finally:
            self._changed(path)

    def _replace(self, path: str, spool: IO[bytes], size: int) -> FileInfo:
        def ask(worker: WorkerClient, _: bool) -> FileInfo:
            return worker.put(path, _chunks(spool), size, append=False, timeout_s=self._timeout_s)

        def from_store(store: UnderStore, relative: str) -> FileInfo:
            return _write_to(store, relative, path, spool, append=False)

        return self._failover.run(Call(path, ask, from_store, self._upload_deadline(size)))

    def _append(self, path: str, spool: IO[bytes], size: int) -> FileInfo:
        failover, detours = self._failover, Detours(path)
        table = failover.cluster.table()
        for worker, _ in failover.cluster.candidates(table, failover.cluster.owners(table, path)):
            try:
                return worker.put(path, _chunks(spool), size, append=True, timeout_s=self._timeout_s)
            except (WorkerBusy, WorkerUnavailable) as exc:  # noqa: PERF203 - a network call each
                failover.failed(worker, exc)
                detours.note(worker.id, exc)
                if isinstance(exc, WorkerUnavailable) and exc.reason not in _NEVER_SENT:
                    what = f"whether the append took effect is not known: {exc}"
                    raise OSError(errno.EIO, what, path) from exc
        own = failover.store_of(path, detours)
        if own is None:
            raise detours.error()
        return _write_to(*own, path, spool, append=True)

    def delete(self, path: str) -> None:
        maybe_done = False

        def ask(worker: WorkerClient, _: bool) -> None:
            nonlocal maybe_done
            try:
                worker.call("DELETE", "/file", self._failover.deadline(), ("path", path))
            except FileNotFoundError:
                if not maybe_done:
                    raise
            except CacheError as exc:
                maybe_done = maybe_done or exc.reason not in _NEVER_SENT
                raise

        def from_store(store: UnderStore, relative: str) -> None:
            with suppress(*((FileNotFoundError,) if maybe_done else ())):
                store.delete(relative)

        self._told(path, lambda: self._failover.run(Call(path, ask, from_store, self._failover.deadline())))

    def make_directory(self, path: str) -> None:
        deadline = self._failover.deadline()
        call = Call(
            path,
            lambda worker, _: worker.call("POST", "/directory", deadline, ("path", path)),
            lambda store, relative: store.make_directory(relative),
            deadline,
        )
        self._told(path, lambda: self._failover.run(call))

    def _upload_deadline(self, size: int) -> float:
        """After which no further worker is tried: one may have been silent, a slow store takes 1 MiB/s."""
        return monotonic() + 2 * self._timeout_s + size / (1 << 20)


def _chunks(spool: IO[bytes]) -> Iterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(_CHUNK_BYTES):
        yield chunk


def _write_to(store: UnderStore, relative: str, path: str, spool: IO[bytes], *, append: bool) -> FileInfo:
    with store.open_writer(relative, append=append) as writer:
        for chunk in _chunks(spool):
            writer.write(chunk)
        info = writer.commit()
    return FileInfo(path, info.size, info.version, info.mtime)
