"""Many ranges at once: a request or two for each worker that owns some, all under way together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import compress
from time import monotonic
from typing import NamedTuple

from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import CacheError, PageCorrupt, UnderStoreError
from kara_cache.failover import Failover
from kara_cache.page_buffers import fresh_memory
from kara_cache.reading.file_reads import FileReads
from kara_cache.same_host.local_pages import LocalPages
from kara_cache.same_host.local_ranges import Piece, read_pieces, take_pages
from kara_cache.stripe import STRIPE_BYTES, stripes
from kara_cache.transport.worker_client import RangesRequest, WorkerClient
from kara_cache.wire import MAX_RANGES, MAX_RANGES_BODY_BYTES, FileRange, encode_ranges

_IN_FLIGHT = 16  # requests sent before the first answer is read; more would only wait for connections
_HEAD_START = (
    256  # ranges of a large batch that are asked for first: longer to read than the others to prepare
)
_RANGE_BYTES = 16  # of one range in a request, and of one file beside its path and version
_FILE_BYTES = 12


class _Request(NamedTuple):
    """What one worker is asked for at once."""

    worker: WorkerClient
    pieces: list[Piece]
    whole: memoryview | None  # the memory of all pieces, where they lie in it one behind the other


class RangeReads:
    """Thread-safe; usable in a forked child after its parts were told."""

    def __init__(
        self, failover: Failover, reads: FileReads, local: LocalPages, metrics: ClientMetrics
    ) -> None:
        self._failover = failover
        self._reads = reads
        self._local = local
        self._metrics = metrics

    def read(self, ranges: Sequence[tuple[CachedFile, int, int]]) -> list[memoryview]:
        """The bytes of each (file, start, length), in this order; shorter where the file ends.

        All views share one piece of memory, in which they lie one behind the other.
        """
        began = monotonic()
        lengths = [
            length if 0 <= length <= file.size - start else max(0, min(length, file.size - start))
            for file, start, length in ranges
        ]
        memory, deadline = fresh_memory(sum(lengths)), self._failover.deadline()
        flight, views = _Flight(self._failover, self._metrics, deadline), list[memoryview]()
        local = bool(self._local.page_sizes) or self._has_local_workers()
        # a large batch is asked for in two parts: the workers read the first while the second is prepared
        first = 0 if local or len(ranges) < 2 * _HEAD_START else _HEAD_START
        try:
            at = 0
            for part in (slice(0, first), slice(first, None)):
                pieces, stop = _cut(ranges[part], lengths[part], memory, at, views)
                whole: memoryview | None = memory[at:stop]
                at = stop
                if local:
                    before = len(pieces)
                    pieces = self._read_here(pieces, len(memory), deadline)
                    whole = whole if len(pieces) == before else None
                flight.ask(pieces, whole)
            left = flight.land()
            if left:
                flight.ask(left, None)
                left = flight.land()
        finally:
            flight.abandon()
        for piece in left:  # one by one, with every detour there is
            self._reads.read_into(piece.file, piece.start, piece.view)
        self._metrics.batch(monotonic() - began)
        return views

    def _has_local_workers(self) -> bool:
        return any(client.link.is_local for client in self._failover.cluster.table().clients.values())

    def _read_here(self, pieces: Sequence[Piece], size: int, deadline: float) -> list[Piece]:
        """What is left of pieces of `size` bytes when everything was read that pages of this host have."""
        left = read_pieces(self._local, pieces)
        if left and self._take_pages(left, deadline):
            left = read_pieces(self._local, left)
        if self._local.page_sizes:
            left = [piece for piece in left if not self._read_held(piece)]
        here = len(pieces) - len(left)
        if here:
            self._metrics.ranges("local", here, size - sum(len(piece.view) for piece in left))
        return left

    def _take_pages(self, pieces: Sequence[Piece], deadline: float) -> bool:
        """Asks workers on this host for the pages under these pieces; whether any came."""
        wanted: dict[WorkerClient, set[tuple[CachedFile, int]]] = {}
        cluster = self._failover.cluster
        table = cluster.table()
        for file, start, view in pieces:
            worker = cluster.first(table, cluster.owners_of(table, file, start // STRIPE_BYTES))
            if worker is not None and worker.link.is_local and worker.link.page_bytes:
                page_bytes = worker.link.page_bytes
                for index in range(start // page_bytes, (start + len(view) - 1) // page_bytes + 1):
                    if not self._local.has(file, index, page_bytes):
                        wanted.setdefault(worker, set()).add((file, index))
        came = [take_pages(self._local, worker, pages, deadline) for worker, pages in wanted.items()]
        return any(came)

    def _read_held(self, piece: Piece) -> bool:
        """The general way, for pieces across pages; one that is wrong is noted and left to a request."""
        try:
            return self._local.read_held(piece.file, piece.start, piece.view) == len(piece.view)
        except PageCorrupt as exc:
            self._metrics.fallback(exc.reason)
            return False


class _Flight:
    """Requests that are under way. All are sent before the first answer is received, so that workers work at
    the same time without a thread for each. For one thread."""

    def __init__(self, failover: Failover, metrics: ClientMetrics, deadline: float) -> None:
        self._failover = failover
        self._metrics = metrics
        self._deadline = deadline
        self._under_way: deque[tuple[_Request, RangesRequest]] = deque()
        self._left: list[Piece] = []

    def ask(self, pieces: Sequence[Piece], whole: memoryview | None) -> None:
        """Asks each piece's first worker.

        `whole` is the memory of all, where they lie in it one behind the other.
        """
        groups: dict[WorkerClient, list[Piece]] = {}
        cluster = self._failover.cluster
        table = cluster.table()
        asked: dict[tuple[CachedFile, int], list[Piece]] = {}
        for piece in pieces:
            place = piece[0], piece[1] // STRIPE_BYTES
            group = asked.get(place)
            if group is None:
                worker, _ = next(cluster.candidates(table, cluster.owners_of(table, *place)), (None, False))
                group = self._left if worker is None else groups.setdefault(worker, [])
                asked[place] = group
            group.append(piece)
        if len(groups) != 1 or len(next(iter(groups.values()))) != len(pieces):
            whole = None
        for worker, group in groups.items():
            for part in _requests(group):
                memory = None
                if whole is not None:
                    size = sum(len(piece[2]) for piece in part)
                    memory, whole = whole[:size], whole[size:]
                self._start(_Request(worker, part, memory))

    def land(self) -> list[Piece]:
        """Receives every answer; the pieces that did not come."""
        while self._under_way:
            self._receive_oldest()
        left, self._left = self._left, []
        return left

    def abandon(self) -> None:
        """Whatever is still under way."""
        while self._under_way:
            self._under_way.popleft()[1].abandon()

    def _start(self, request: _Request) -> None:
        while len(self._under_way) >= _IN_FLIGHT:
            self._receive_oldest()
        try:
            exchange = request.worker.start_ranges(_body(request.pieces), self._deadline)
        except CacheError as exc:
            self._failover.failed(request.worker, exc)
            self._left += request.pieces
        else:
            self._under_way.append((request, exchange))

    def _receive_oldest(self) -> None:
        """An answer such as FileNotFoundError is left to a read of its own."""
        (worker, pieces, whole), exchange = self._under_way.popleft()  # it ends by itself, whatever happens
        try:
            frames = exchange.finish([piece[2] for piece in pieces], whole)
        except (CacheError, UnderStoreError) as exc:
            self._failover.failed(worker, exc)
            self._left += pieces
            return
        if frames.broken is not None:
            self._failover.failed(worker, frames.broken)
        failures = {
            type(error): error
            for error in frames.errors.values()
            if isinstance(error, (CacheError, UnderStoreError))
        }
        for error in failures.values():  # one of each kind: they have one cause
            self._failover.failed(worker, error)
        arrived = list(compress(pieces, frames.done))
        self._metrics.ranges("worker", len(arrived), sum(len(piece[2]) for piece in arrived))
        if frames.broken is None and not frames.errors:
            self._failover.cluster.suspects.answered(worker.id)
        if len(arrived) < len(pieces):
            self._left += [piece for piece, done in zip(pieces, frames.done, strict=True) if not done]


def _cut(
    ranges: Sequence[tuple[CachedFile, int, int]],
    lengths: Sequence[int],
    memory: memoryview,
    at: int,
    views: list[memoryview],
) -> tuple[list[Piece], int]:
    """Pieces within stripes of ranges whose bytes lie in `memory` from `at` on, and where they end there.

    Adds a view of each range to `views`.
    """
    made = tuple.__new__  # in half the time that Piece() takes
    pieces: list[Piece] = []
    for (file, start, _), length in zip(ranges, lengths, strict=True):
        view = memory[at : at + length]
        at += length
        views.append(view)
        if 0 < length <= STRIPE_BYTES - start % STRIPE_BYTES:
            pieces.append(made(Piece, (file, start, view)))
        elif length:
            pieces += [
                Piece(file, stripe.start, view[stripe.start - start : stripe.stop - start])
                for stripe in stripes(start, start + length)
            ]
    return pieces, at


def _requests(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Cuts what one worker is asked for into requests within the protocol's limits."""
    if len(pieces) <= MAX_RANGES:
        files_bytes = sum(map(_file_bytes, {piece[0] for piece in pieces}))
        if _FILE_BYTES + files_bytes + _RANGE_BYTES * len(pieces) <= MAX_RANGES_BODY_BYTES:
            yield list(pieces)
            return
    group: list[Piece] = []
    size = _FILE_BYTES
    files: set[CachedFile] = set()
    for piece in pieces:
        file, more = piece[0], _RANGE_BYTES
        if file not in files:
            more += _file_bytes(file)
        if len(group) == MAX_RANGES or size + more > MAX_RANGES_BODY_BYTES:
            yield group
            group, size, files = [], _FILE_BYTES, set()
            more = _RANGE_BYTES + _file_bytes(file)
        files.add(file)
        group.append(piece)
        size += more
    if group:
        yield group


def _file_bytes(file: CachedFile) -> int:
    return _FILE_BYTES + len(file.info.path.encode()) + len(file.info.version.encode())


def _body(pieces: Sequence[Piece]) -> bytes:
    numbers: dict[CachedFile, int] = {}
    ranges: list[FileRange] = []
    made = tuple.__new__  # in half the time that FileRange() takes
    for file, start, view in pieces:
        number = numbers.get(file)
        if number is None:
            number = numbers[file] = len(numbers)
        ranges.append(made(FileRange, (number, start, len(view))))
    return encode_ranges([file.range_file for file in numbers], ranges)
