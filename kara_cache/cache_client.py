"""The cache as one thing: every call finds the right worker, and another way when that one fails."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientCounts, ClientMetrics
from kara_cache.cluster import Cluster
from kara_cache.config import ClientConfig
from kara_cache.failover import Failover, Fallback
from kara_cache.file_answer import MAX_BYTES
from kara_cache.file_lookups import FileLookups
from kara_cache.file_writes import CacheWriter, FileWrites
from kara_cache.known_mounts import KnownMounts
from kara_cache.listing import Listing
from kara_cache.membership.base import Membership, MembershipView
from kara_cache.membership.configured import membership_of
from kara_cache.metrics_push import MetricsPush
from kara_cache.mount import normalize_path
from kara_cache.own_changes import OwnChanges
from kara_cache.page_buffers import filled_bytes
from kara_cache.process_events import tell_at_exit, watch
from kara_cache.reading.file_reads import ReadParts
from kara_cache.reading.held_reads import HeldReads
from kara_cache.reading.lanes import Lanes
from kara_cache.reading.range_reads import RangeReads
from kara_cache.reading.read_ahead import ReadAhead, SequentialReader
from kara_cache.reading.traced_reads import traced_or_plain
from kara_cache.reading.wide_reads import WideReads
from kara_cache.same_host.local_pages import LocalPages
from kara_cache.same_host.page_views import PageViews
from kara_cache.same_host.summed_spans import JoinedFiles, read_summed
from kara_cache.slow_reads import SlowReads
from kara_cache.suspects import Suspects
from kara_cache.transport.credentials import ClientTls, authorization
from kara_cache.transport.worker_link import Transport
from kara_cache.ufs.base import FileInfo
from kara_cache.worker_calls import WorkerCalls

_MAX_FILES = 4096  # whose request prefixes are kept
_ANY_SIZE = 10**17


class CacheClient:
    """A client of one cluster. Thread-safe, works on in a child after `fork()`, pickles as its arguments.

    Paths are kara paths, `/mount/rest`, in and out. A read returns bytes of the one version that its
    FileInfo names, verified in this process, or raises:

    - FileNotFoundError, PermissionError, IsADirectoryError, ...: what the store answered;
    - StaleVersion: the store has replaced that version and the cache does not hold the bytes;
    - AccessDenied: the cache refused us;
    - UnderStoreError, WorkerUnavailable: nobody could answer within `config.timeout_s`; the message says
      who was asked and why each failed.

    A worker's failure is no failure of a call: it goes on with other workers, then with `fallback`.
    """

    def __init__(
        self, config: ClientConfig, *, membership: Membership | None = None, fallback: Fallback | None = None
    ) -> None:
        """Connects to nothing yet.

        Args:
            membership: Who the workers are; by default what `config` says: etcd, a fixed list, or
                with neither the user's private worker.
            fallback: Kara path -> (store, path in it), for callers with store options of their
                own; raises LookupError where it has none. Stores remain the caller's to close.
        """
        self.config = config
        self._arguments = (config, membership, fallback)
        self._tls = ClientTls(config.tls)
        transport = Transport(
            connect_timeout_s=config.connect_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
            connections=config.connections_per_worker,
            connection_idle_s=config.connection_idle_s,
            local=config.local_reads,
            tls=self._tls if config.tls.enabled else None,
            authorization=authorization(config.token, config.secret),
        )
        self._membership = membership if membership is not None else membership_of(config)
        self._cluster = Cluster(self._membership, transport, Suspects(config.suspect_s))
        self._metrics = ClientMetrics()
        self._slow = SlowReads()
        self._push = MetricsPush(self._metrics, self._slow, self._cluster, at_first_use=tell_at_exit)
        self._known_mounts = KnownMounts(self._cluster)
        self._failover = Failover(self._cluster, self._metrics, timeout_s=config.timeout_s, fallback=fallback)
        self._calls = WorkerCalls(self._cluster, self._failover, look_timeout_s=3 * config.stall_timeout_s)
        self._local = LocalPages()
        wide = WideReads(Lanes(most=config.connections_per_worker // 4))  # other threads read as well
        parts = ReadParts(self._failover, self._local, self._metrics, self._push, self._slow, wide)
        self._reads = traced_or_plain(parts, config.trace_reads, config.trace_slow_s)
        self._reads.changed = self._changed
        self._views = PageViews(self._local, self._failover, self._metrics, self._reads.read_into)
        self._ranges = RangeReads(self._failover, self._reads, self._local, self._metrics)
        self._changes = OwnChanges()
        self._lookups = FileLookups(self._failover, self._known_mounts, self._changes, self._metrics)
        self._writes = FileWrites(self._failover, timeout_s=config.timeout_s, changed=self._changed)
        self._listing = Listing(self._failover, self._changes, timeout_s=config.timeout_s)
        self._held = HeldReads(
            self._local, self._metrics, self._push, self._reads.read_into, self._views.view
        )
        self._read_ahead = ReadAhead(
            self._held.read_into,
            self._metrics,
            at_hand=self._local.holds,
            window_bytes=config.read_ahead_bytes,
            timeout_s=config.timeout_s,
        )
        self._files: dict[int, CachedFile] = {}  # by id of the FileInfo, which each keeps alive
        watch(self)

    def __repr__(self) -> str:
        return f"<CacheClient {self.config.cluster_name} {self._cluster}, {self._local}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._arguments

    # -- reading -----------------------------------------------------------------------------------

    def info(self, path: str) -> FileInfo:
        """The file's current size and version, after the mount's freshness rule; or the directory."""
        return self._lookups.info(normalize_path(path))

    def open_file(self, path: str) -> tuple[FileInfo, bytes | None]:
        """As `info`, and the content where one answer could bring both: of a small file that is cached.

        Raises IsADirectoryError for a directory.
        """
        return self._file(path, 0, MAX_BYTES, MAX_BYTES)

    def open_range(self, path: str, start: int, length: int) -> tuple[FileInfo, bytes | None]:
        """As `info`, and bytes [start, start + length), fewer at the end, where one answer brings them."""
        return self._file(path, start, length if length <= MAX_BYTES else 0, _ANY_SIZE)

    def _file(self, path: str, start: int, length: int, at_most: int) -> tuple[FileInfo, bytes | None]:
        if monotonic() >= self._push.due_at:
            self._push.when_due()
        found = self._lookups.info_with(normalize_path(path), start, length, at_most)
        if found[0].is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return found

    def look_up(
        self, paths: Sequence[str], *, contents: bool = False
    ) -> dict[str, tuple[FileInfo, bytes | None] | Exception]:
        """What each of many files is, by the path as given, with a few requests to each worker.

        With `contents` those of small files come along, from the store where they are not cached.
        What is wrong with one of them, or that it is a directory, is an exception in its place.
        """
        normal: dict[str, str] = {}
        found: dict[str, tuple[FileInfo, bytes | None] | Exception] = {}
        for path in paths:
            try:
                normal[path] = normalize_path(path)
            except ValueError as exc:  # noqa: PERF203 - rare
                found[path] = exc
        answers = self._lookups.many([*normal.values()], MAX_BYTES if contents else 0)
        for path, name in normal.items():
            answer = answers[name]
            if not isinstance(answer, Exception) and answer[0].is_dir:
                answer = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            found[path] = answer
        return found

    def _changed(self, path: str) -> None:
        """After a change of a file by this process, if it succeeded or not, or by others as it turned out."""
        self._changes.note(path)
        self._lookups.forget(path)

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        """The direct children, sorted by path; with `recursive` every file below, no directories.

        They come as the iterator advances. A worker that fails in the middle is replaced by another.
        """
        return self._listing.entries(normalize_path(path), recursive=recursive)

    def read_into(self, file: FileInfo, start: int, buffer: memoryview | bytearray) -> int:
        """Fills `buffer` from byte `start` and returns how many bytes were there, short only at the end."""
        try:  # an id is of no other file as long as this one is kept here
            known = self._files[id(file)]
        except KeyError:
            known = self._known(file)
        view = buffer if type(buffer) is memoryview else memoryview(buffer)  # it costs 0.1 us to make one
        return self._held.read_into(known, start, view)

    def read(self, file: FileInfo, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer only at the end of the file."""
        count = max(0, min(length, file.size - start))
        return filled_bytes(count, lambda view: self.read_into(file, start, view))

    def view(self, file: FileInfo, start: int, length: int) -> memoryview:
        """Bytes [start, start + length), fewer only at the end of the file, read-only.

        No copy where a worker of this host has them within one page: then it is the memory in which the
        kernel keeps the page's file, shared with the worker and all its readers. The whole page was compared
        with the checksum of its fill when this process mapped it, at most 30 s before. The view stays
        what it is for as long as it or a part of it is held, though the page be evicted, the file replaced
        in the store, the worker killed, this client closed; until then the room of the page, or of the
        segment of 32 MiB that it is in, is not given back to the disk. What it does not promise: bytes
        that the kernel dropped meanwhile and reads again are not compared again, and a disk that fails
        then ends the process with SIGBUS, as with any mapped file. `read_into` knows neither.

        In all other cases it is a copy of the caller's own, verified, and what `read_into` raises is raised.
        So is the first one of a client, which does not know yet that the worker is on this host.
        """
        known = self._files.get(id(file))
        if known is None:
            known = self._known(file)
        return self._held.view(known, start, length)

    def read_ranges(self, ranges: Sequence[tuple[FileInfo, int, int]]) -> builtins.list[memoryview]:
        """The bytes of each (file, start, length) in this order, with one request to each worker.

        The views share one piece of memory, so one of them keeps all alive. Raises for the first
        range that cannot be had.
        """
        if monotonic() >= self._push.due_at:
            self._push.when_due()
        wanted, last, known = [], None, None
        for file, start, length in ranges:
            if file is not last or known is None:  # neighbours are mostly of one file
                last, known = file, self._known(file)
            wanted.append((known, start, length))
        return self._ranges.read(wanted)

    def read_summed(
        self, stream: JoinedFiles, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
    ) -> builtins.list[bytes | None] | None:
        """Each [start, stop) of the stream that a page of this host holds and whose xxh3_64 is its sum.

        None for each of the others, which may well be right, and None in all if there are no such pages.
        Makes no request.
        """
        if not self._local.page_sizes:
            return None
        if monotonic() >= self._push.due_at:
            self._push.when_due()
        found = read_summed(self._local, stream, starts, stops, sums)
        here = [*map(len, filter(None, found))]
        self._metrics.ranges("local", len(here), sum(here))
        return found

    def open_reader(self, file: FileInfo, *, position: int = -1) -> SequentialReader:
        """For many reads of one file: what is read in sequence is fetched in advance. Close it after use.

        `position` is where a read ended that was made without it.
        """
        return self._read_ahead.open(self._known(file), position)

    def _known(self, file: FileInfo) -> CachedFile:
        known = self._files.get(id(file))
        if known is not None and known.info is file:
            return known
        if file.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file.path)
        if len(self._files) >= _MAX_FILES:
            self._files.clear()
        known = self._files[id(file)] = CachedFile(file, replicas=self._known_mounts.replicas(file.path))
        return known

    # -- writing -----------------------------------------------------------------------------------

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        """Replaces the file as a whole; readers see the old or the new version, never a part."""
        with self.open_writer(path) as writer:
            writer.write(data)
            return writer.commit()

    def open_writer(self, path: str, *, append: bool = False) -> CacheWriter:
        """A file written in pieces; nothing is visible, nor sent, before `commit`.

        What is not committed when the block ends is discarded. `append` where the store cannot:
        io.UnsupportedOperation.
        """
        return self._writes.open_writer(normalize_path(path), append=append)

    def delete(self, path: str) -> None:
        """Removes a file, or an empty directory."""
        self._writes.delete(normalize_path(path))

    def make_directory(self, path: str) -> None:
        """Makes a directory and its parents; existing ones are fine."""
        self._writes.make_directory(normalize_path(path))

    # -- the cache itself --------------------------------------------------------------------------

    def free(self, path: str, *, recursive: bool = False) -> tuple[int, int]:
        """Drops cached pages of a file, or of all files below a directory, on all workers: (pages, bytes).

        The store is not touched. Raises WorkerUnavailable, when the others are done, if one of the
        active workers could not be told.
        """
        return self._calls.free(normalize_path(path), recursive=recursive)

    def ask(
        self, method: str, name: str, path: str, *query: tuple[str, str | int], body: bytes | None = None
    ) -> Any:
        """One request of docs/protocol.md that any worker can answer; the JSON of the first that does.

        `path` says whom to ask first, and is named in errors. A worker that does not answer may have
        done what was asked, and the next one is asked the same: for requests that may be repeated.
        """
        return self._calls.ask(method, name, path, *query, body=body)

    def mounts(self) -> builtins.list[dict[str, Any]]:
        """Name, url, freshness, replicas and read_only of every mount, as a worker tells."""
        return self._calls.mounts()

    def add_mount(self, url: str, options: Mapping[str, Any]) -> str:
        """The kara path of a store's url on the user's private worker; others refuse (AccessDenied)."""
        return self._calls.add_mount(url, options)

    def resolve(self, url: str) -> str:
        """The kara path of a store's url, by the mount whose url is its longest prefix.

        Raises ConfigError, naming the mounts there are, where none covers it.
        """
        return self._calls.resolve(url)

    # -- looking at it -----------------------------------------------------------------------------

    def explain(self, path: str) -> dict[str, Any]:
        """Where a file's bytes are: `info`, `owners` of each stripe by rank, and what `workers` hold."""
        return self._calls.explain(self.info(path))

    def workers(self) -> MembershipView:
        """The members as this process sees them now."""
        return self._membership.view()

    def worker_status(self) -> builtins.list[dict[str, Any]]:
        """What every member says of itself: id, address, state, ...; `error` where it does not answer."""
        return self._calls.statuses()

    def slowest_reads(self, count: int) -> builtins.list[dict[str, Any]]:
        """The slowest reads that clients anywhere told of lately, slowest first, with stages and cause."""
        self.flush_metrics()
        return self._calls.slowest_reads(count)

    # -- counting, and the end ---------------------------------------------------------------------

    @property
    def metrics(self) -> ClientCounts:
        """What this process has counted so far."""
        return self._metrics.snapshot()

    def flush_metrics(self) -> bool:
        """Hands the counts to a worker now, not at the next interval; False when none took them."""
        return self._push.push()

    def close(self) -> None:
        """Ends connections and read-ahead, and tells a worker the counts. Idempotent."""
        if self._push.due_at:
            self._push.push()
        self._read_ahead.close()
        self._reads.close()
        self._cluster.close()
        self._local.close()
        if self._arguments[1] is None:
            self._membership.close()

    def __enter__(self) -> CacheClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._tls.after_fork()
        self._metrics.after_fork()
        self._slow.after_fork()
        self._push.after_fork()
        self._cluster.after_fork()
        self._local.after_fork()
        self._views.after_fork()
        self._held.after_fork()
        self._read_ahead.after_fork()
        self._reads.after_fork()

    def at_exit(self) -> None:
        if self._push.due_at:
            self._push.push()


def _rebuild(config: ClientConfig, membership: Membership | None, fallback: Fallback | None) -> CacheClient:
    return CacheClient(config, membership=membership, fallback=fallback)
