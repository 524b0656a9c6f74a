"""Everything that can be asked of one worker: docs/protocol.md, as calls."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from kara_cache.cached_file import CachedFile
from kara_cache.errors import CacheError, FormatError, WorkerUnavailable
from kara_cache.membership.base import WorkerInfo
from kara_cache.read_stages import Marks
from kara_cache.transport.range_frames import RangeFrames
from kara_cache.transport.response import place_of
from kara_cache.transport.verified_body import receive_verified
from kara_cache.transport.worker_link import Transport, WorkerLink, answered_error
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import decode_info

_REPORT_S = 1.0

MAX_DESCRIPTORS = 64  # in one response, docs/protocol.md


class PassedPage(NamedTuple):
    """A page of a worker on this host."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody looks a page up with
    fd: int
    place: tuple[int, int] | None  # of its record and of its data in fd; None: a file of its own


class WorkerClient:
    """One worker. Thread-safe; usable in a forked child after `after_fork`.

    Calls end by `deadline` (monotonic seconds). They raise CacheError when the worker could not
    answer; file errors, UnderStoreError and AccessDenied as the worker raised them.
    """

    def __init__(self, worker: WorkerInfo, transport: Transport) -> None:
        self.worker = worker
        self.id = worker.id
        self.link = WorkerLink(worker, transport)
        self.no_descriptors_until = 0.0  # monotonic second; set when it refused to pass any

    def __repr__(self) -> str:
        return f"<WorkerClient {self.link}>"

    # -- bytes -------------------------------------------------------------------------------------

    def read_into(
        self, file: CachedFile, start: int, view: memoryview, *, keep: bool, deadline: float, marks: Marks
    ) -> bool:
        """Fills `view`, which must not be empty nor reach beyond the file's end, with verified bytes.

        With keep=False the worker reads through without storing pages. Returns whether every page
        was on its SSD; `marks` gets what it took.
        """
        link = self.link
        prefix = file.reading if keep else file.read_through
        tail = link.tail()
        if marks.trace:
            tail = tail[:-2] + marks.trace + b"\r\n"
        connection = link.send(b"%b%d&length=%d%b" % (prefix, start, len(view), tail), deadline)
        if connection.head.status != 200:
            link.document(connection, file.path)
        try:
            marks.fields, marks.complete = receive_verified(connection, file.path, start, view)
        except BaseException:
            link.discard(connection)
            raise
        marks.connect_s = connection.connect_s
        link.release(connection)
        return connection.head.length is not None

    def read_passing(
        self, file: CachedFile, start: int, view: memoryview, *, deadline: float, marks: Marks
    ) -> PassedPage | None:
        """As `read_into`, within one page; returns the page as well if the worker passed it along.

        The descriptor belongs to the caller. Only while the link is local and passes pages.
        """
        link = self.link
        request = b"%b%d&length=%d&pass=1%b" % (file.reading, start, len(view), link.tail())
        connection, fds = link.send_for_descriptors(request, 1, deadline)
        try:
            if connection.head.status != 200:
                link.document(connection, file.path)
            try:
                marks.fields, marks.complete = receive_verified(connection, file.path, start, view)
                place = place_of(connection.head) if fds else None
            except FormatError as exc:
                link.discard(connection)
                raise WorkerUnavailable(f"{connection.where}: {exc}", reason="protocol") from exc
            except BaseException:
                link.discard(connection)
                raise
            marks.connect_s = connection.connect_s
            marks.hit = connection.head.length is not None
            link.release(connection)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return PassedPage(start // link.page_bytes, fds[0], place) if fds else None

    def start_ranges(self, body: bytes, deadline: float) -> RangesRequest:
        """Sends a request of `wire.encode_ranges` and lets the worker work on it."""
        request = self.link.request("POST", "/ranges", (("joined", 1),), len(body)) + body
        return RangesRequest(self.link, request, deadline)

    def descriptors(
        self, file: CachedFile, first: int, count: int, deadline: float
    ) -> builtins.list[PassedPage]:
        """Those among `count` pages from `first` that the worker has.

        The descriptors belong to the caller. Only while the link is local.
        """
        wanted = first, min(count, MAX_DESCRIPTORS)
        request = file.paging + b"%d&count=%d&places=1" % wanted + self.link.tail()
        connection, fds = self.link.send_for_descriptors(request, MAX_DESCRIPTORS, deadline)
        try:
            document = self.link.document(connection, file.path)
            passed = _passed(document, fds)
            if passed is None:
                what = f"{connection.where}: {len(fds)} descriptors for pages {document!r:.100}"
                raise WorkerUnavailable(what, reason="protocol")
            return passed
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def verify(self, file: CachedFile, start: int, length: int, deadline: float) -> None:
        """Has the pages under a range compared with their sums; wrong ones are dropped."""
        self.call("POST", "/verify", deadline, *_identity(file), ("start", start), ("length", length))

    def report_corrupt(self, file: CachedFile, start: int, length: int) -> None:
        """Tells it of wrong bytes in pages that came from it, within a second or not at all: if it
        cannot be told now, it finds out by itself when it serves the page."""
        with suppress(CacheError, OSError, ValueError):
            self.verify(file, start, length, monotonic() + _REPORT_S)

    def put(
        self, path: str, chunks: Iterable[bytes], size: int, *, append: bool, timeout_s: float
    ) -> FileInfo:
        """Replaces or extends the file. Never sent twice: whether it took effect may be unknown.

        `timeout_s` bounds each step, not the whole.
        """
        query = (("path", path), ("append", 1)) if append else (("path", path),)
        connection = self.link.borrow(monotonic() + timeout_s, fresh=True)
        stall_s, connection.stall_s = connection.stall_s, timeout_s  # a slow store holds up the upload
        try:
            connection.send(self.link.request("PUT", "/file", query, size), monotonic() + timeout_s)
            try:
                for chunk in chunks:
                    connection.deadline = monotonic() + timeout_s
                    connection.send_more(chunk)
                connection.deadline = monotonic() + timeout_s
            except WorkerUnavailable as exc:
                # refused in the middle: the answer says why, if it got through
                if exc.reason != "reset":
                    raise
            connection.response()
            connection.stall_s = stall_s
        except BaseException:
            self.link.discard(connection)
            raise
        return _as_info(self.link.document(connection, path), connection.where)

    # -- documents ---------------------------------------------------------------------------------

    def info(self, path: str, deadline: float) -> FileInfo:
        return _as_info(self.call("GET", "/info", deadline, ("path", path)), self.link.where)

    def list(
        self, path: str, *, recursive: bool, timeout_s: float, age_s: float | None = None
    ) -> Iterator[FileInfo]:
        """Entries as they arrive, over a connection of its own, because the consumer may be slow.

        `timeout_s` bounds each wait, not the whole. The listing may be `age_s` old.
        """
        query: builtins.list[tuple[str, str | int]] = [("path", path)]
        if recursive:
            query.append(("recursive", 1))
        if age_s is not None:
            query.append(("age", f"{age_s:.6f}"))
        connection = self.link.dial(timeout_s)
        connection.stall_s = self.link.patience_s
        try:
            connection.send(self.link.request("GET", "/list", query), monotonic() + timeout_s)
            if connection.response().status != 200:
                raise answered_error(connection, path)
            for line in connection.receive_lines():
                if line:
                    yield _as_info(_parsed(line, connection.where), connection.where)
                connection.deadline = monotonic() + timeout_s
        finally:
            connection.close()

    def call(
        self,
        method: str,
        name: str,
        deadline: float,
        *query: tuple[str, str | int],
        body: bytes | None = None,
    ) -> Any:
        """Any request that is answered by a JSON document."""
        length = None if body is None else len(body)
        request = self.link.request(method, name, query, length) + (body or b"")
        path = next((str(value) for key, value in query if key == "path"), name)
        return self.link.document(self.link.send(request, deadline, patient=True), path)

    def close(self) -> None:
        self.link.close()

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self.link.after_fork()


class RangesRequest:
    """A request for ranges that was sent; `finish` or `abandon` it."""

    def __init__(self, link: WorkerLink, request: bytes, deadline: float) -> None:
        self._link = link
        self._request = request
        self._deadline = deadline
        self._connection = link.start(request, deadline)

    def finish(self, wanted: Sequence[memoryview], whole: memoryview | None = None) -> RangeFrames:
        """Waits for the answer and fills `wanted`; what arrived is in the result, also when it broke off.

        `whole` is the memory of all of them, where they lie one behind the other. Raises when there was no
        answer at all, or an error in place of one.
        """
        connection = self._link.answer(self._connection, self._request, self._deadline)
        if connection.head.status != 200:
            self._link.document(connection, "/ranges")
        frames = RangeFrames(connection, wanted, whole)
        try:
            frames.receive()
        except CacheError as exc:
            self._link.discard(connection)
            frames.broken = exc
        except BaseException:
            self._link.discard(connection)
            raise
        else:
            self._link.release(connection)
        return frames

    def abandon(self) -> None:
        self._link.discard(self._connection)


def _identity(file: CachedFile) -> tuple[tuple[str, str | int], ...]:
    info = file.info
    return ("path", info.path), ("version", info.version), ("size", info.size)


def _passed(document: Any, fds: Sequence[int]) -> list[PassedPage] | None:
    """What a worker says of the descriptors that came with it; None where that cannot be."""
    if not isinstance(document, dict):
        return None
    pages, places = document.get("pages", []), document.get("places", [None] * len(fds))
    if not _counts(pages, len(fds)) or not isinstance(places, list) or len(places) != len(fds):
        return None
    if not all(place is None or _counts(place, 2) for place in places):
        return None
    return [PassedPage(*passed) for passed in zip(pages, fds, places, strict=True)]


def _counts(values: object, length: int) -> bool:
    return (
        isinstance(values, list) and len(values) == length and all(type(n) is int and n >= 0 for n in values)
    )


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise WorkerUnavailable(f"{where}: no JSON: {line[:80]!r}", reason="protocol") from exc


def _as_info(document: Any, where: str) -> FileInfo:
    try:
        return decode_info(document)
    except FormatError as exc:
        raise WorkerUnavailable(f"{where}: {exc}", reason="protocol") from exc
