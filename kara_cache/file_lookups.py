"""What files are now, with their first bytes in the same answer: one file, or many in a few requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic
from urllib.parse import quote

from kara_cache.checksum import checksum
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import (
    CacheError,
    FormatError,
    KaraError,
    PageCorrupt,
    UnderStoreError,
    WorkerUnavailable,
)
from kara_cache.failover import Call, Detours, Failover
from kara_cache.file_answer import BYTES_HEADER, MAX_FILES, decode_document, decode_file, encode_paths
from kara_cache.known_mounts import KnownMounts
from kara_cache.own_changes import OwnChanges
from kara_cache.transport.connection import Connection
from kara_cache.transport.verified_body import receive_verified
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.transport.worker_link import named_error
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import MAX_HEAD_BYTES, PREFIX, RANGE_FRAME, decode_error

Found = tuple[FileInfo, "bytes | None"]

_INFO = f"GET {PREFIX}/info?path="
_BYTES = f"\r\n{BYTES_HEADER.lower()}:".encode()
_MAX_KNOWN = 32_768  # files of immutable mounts, of some 300 bytes each
_IN_FLIGHT = 8  # requests sent before the first answer is read, as of `range_reads`
_AT_ONCE = 16  # look-ups of single files, where many could not be asked together
_MAX_FRAME_BYTES = 1 << 20
_DATA, _ERROR, _SIGN_OF_LIFE = range(3)


class FileLookups:
    """Thread-safe; usable in a forked child after its parts were told.

    What a file of an immutable mount is, is asked once: then opening it needs no request.
    """

    def __init__(
        self, failover: Failover, mounts: KnownMounts, changes: OwnChanges, metrics: ClientMetrics
    ) -> None:
        self._failover = failover
        self._mounts = mounts
        self._changes = changes
        self._metrics = metrics
        self._known: dict[str, FileInfo] = {}  # of immutable mounts
        self._known_by = mounts.told  # the mounts that it was told of

    def info(self, path: str) -> FileInfo:
        return self.info_with(path, 0, 0, 0)[0]

    def info_with(self, path: str, start: int, length: int, at_most: int) -> Found:
        """What the file is, and bytes [start, start + length) of it where the answer could bring them.

        It never does for a file of more than `at_most` bytes, nor where a store had to be asked for them.
        Verified, and of the version in the facts.
        """
        known = self._known.get(path)
        if known is not None and self._mounts.told is self._known_by:
            return known, b"" if not known.size else None
        failover = self._failover
        deadline = failover.deadline()
        cluster = failover.cluster
        table = cluster.table()
        owners = cluster.turned(cluster.owners(table, path), self._mounts.replicas(path), 0)
        # nearly every look-up ends with the first worker: the machinery of detours comes after it
        detours, worker = Detours(path), cluster.first(table, owners)
        if worker is not None:
            try:
                found = self._ask(worker, path, start, length, at_most, deadline)
            except (CacheError, UnderStoreError) as exc:
                failover.note(detours, worker, exc)
            else:
                cluster.suspects.answered(worker.id)
                return self._keep(path, found)
        call: Call[Found] = Call(
            path,
            lambda worker, _: self._ask(worker, path, start, length, at_most, deadline),
            lambda store, below: (replace(store.info(below), path=path), None),
            deadline,
        )
        return self._keep(path, failover.run(call, table=table, owners=owners, detours=detours))

    def many(self, paths: Sequence[str], at_most: int) -> dict[str, Found | Exception]:
        """The same of many files, each as a whole or not at all, with a few requests to each worker.

        What is wrong with one of them is its answer, in the place of it.
        """
        found: dict[str, Found | Exception] = {}
        for first in range(0, len(requests := list(self._grouped(paths))), _IN_FLIGHT):
            self._exchange(requests[first : first + _IN_FLIGHT], at_most, found)
        left = [path for path in paths if path not in found]
        if len(left) <= 1:
            return found | {path: self._alone(path, at_most) for path in left}
        with ThreadPoolExecutor(min(_AT_ONCE, len(left)), "kara-look-up") as pool:
            answers = pool.map(lambda path: self._alone(path, at_most), left)
            return found | dict(zip(left, answers, strict=True))

    def forget(self, path: str) -> None:
        """After a change of this process."""
        self._known.pop(path, None)

    def _keep(self, path: str, found: Found) -> Found:
        if not found[0].is_dir and self._mounts.is_immutable(path):
            if self._mounts.told is not self._known_by or len(self._known) >= _MAX_KNOWN:
                self._known, self._known_by = {}, self._mounts.told
            self._known[path] = found[0]
        return found

    def _ask(
        self, worker: WorkerClient, path: str, start: int, length: int, at_most: int, deadline: float
    ) -> Found:
        link, began = worker.link, monotonic()
        asked = f"&start={start}&length={length}&at_most={at_most}" if length else ""
        head = f"{_INFO}{quote(path, safe='/')}{asked}{self._age(path)}".encode("ascii")
        connection = link.send(head + link.tail(), deadline, patient=True)
        if connection.head.status != 200:
            link.document(connection, path)
        try:
            info, count, whole = _document(connection)
            content = None if whole else bytearray(count)
            if content is not None:
                if count != min(length, info.size - start):
                    raise FormatError(f"{count} bytes at {start} of a file of {info.size}")
                receive_verified(connection, path, start, memoryview(content))
        except PageCorrupt as exc:
            link.discard(connection)
            self._failover.failed(worker, exc)
            return info, None  # the read that follows has the detours, and tells the worker
        except FormatError as exc:
            link.discard(connection)
            raise WorkerUnavailable(f"{connection.where}: {path}: {exc}", reason="protocol") from exc
        except BaseException:
            link.discard(connection)
            raise
        link.release(connection)
        if content is None:
            return info, None if info.size or info.is_dir else b""
        self._metrics.worker_read(count, 0, monotonic() - began, hit=True)
        return info, bytes(content)

    def _age(self, path: str) -> str:
        age_s = self._changes.age_s(path)
        return "" if age_s is None else f"&age={age_s:.6f}"

    # -- many ----------------------------------------------------------------------------------------

    def _alone(self, path: str, at_most: int) -> Found | Exception:
        try:
            return self.info_with(path, 0, at_most, at_most)
        except (KaraError, OSError, ValueError) as exc:
            return exc

    def _grouped(self, paths: Sequence[str]) -> Iterator[tuple[WorkerClient, list[str]]]:
        """Paths by the worker to ask; those that have none are left out."""
        cluster = self._failover.cluster
        table = cluster.table()
        groups: dict[WorkerClient, list[str]] = {}
        for path in dict.fromkeys(paths):
            owners = cluster.turned(cluster.owners(table, path), self._mounts.replicas(path), 0)
            worker = cluster.first(table, owners)
            if worker is not None:
                groups.setdefault(worker, []).append(path)
        for worker, group in groups.items():
            for first in range(0, len(group), MAX_FILES):
                yield worker, group[first : first + MAX_FILES]

    def _exchange(
        self,
        requests: Sequence[tuple[WorkerClient, list[str]]],
        at_most: int,
        found: dict[str, Found | Exception],
    ) -> None:
        """Sends all, then receives all; what fails leaves its paths out of `found`."""
        deadline = self._failover.deadline()
        started: list[tuple[WorkerClient, list[str], bytes, Connection]] = []
        try:
            for worker, paths in requests:
                ages = [age for path in paths if (age := self._changes.age_s(path)) is not None]
                query = (("at_most", at_most), *((("age", f"{min(ages):.6f}"),) if ages else ()))
                body = encode_paths(paths)
                request = worker.link.request("POST", "/files", query, len(body)) + body
                try:
                    started.append((worker, paths, request, worker.link.start(request, deadline)))
                except CacheError as exc:
                    self._failover.failed(worker, exc)
            while started:
                self._receive(*started[0], deadline, found)
                started.pop(0)
        finally:
            for worker, _, _, connection in started:
                worker.link.discard(connection)

    def _receive(
        self,
        worker: WorkerClient,
        paths: Sequence[str],
        request: bytes,
        connection: Connection,
        deadline: float,
        found: dict[str, Found | Exception],
    ) -> None:
        link = worker.link
        try:
            connection = link.answer(connection, request, deadline)
            if connection.head.status != 200:
                link.document(connection, "/files")
        except (CacheError, UnderStoreError) as exc:
            self._failover.failed(worker, exc)
            return
        except (KaraError, OSError, ValueError):
            return  # an older worker, or no rights: asked one by one, each path gets its answer
        count = size = 0
        try:
            for index, answer in _frames(connection, paths):
                found[paths[index]] = answer
                if not isinstance(answer, Exception):
                    self._keep(paths[index], answer)
                    if answer[1]:
                        count, size = count + 1, size + len(answer[1])
        except CacheError as exc:
            link.discard(connection)
            self._failover.failed(worker, exc)
        except BaseException:
            link.discard(connection)
            raise
        else:
            link.release(connection)
            self._failover.cluster.suspects.answered(worker.id)
        self._metrics.ranges("worker", count, size)


def _document(connection: Connection) -> tuple[FileInfo, int, bool]:
    """The file, how many of its bytes follow, and whether nothing does. Raises FormatError."""
    head = connection.head
    at = head.fields.find(_BYTES)
    if at < 0:
        return decode_document(connection.receive_all()), 0, True
    at += len(_BYTES)
    text = head.fields[at : head.fields.find(b"\r\n", at)].strip()
    if not text.isdigit() or len(text) > 18 or head.length is None:
        raise FormatError(f"{BYTES_HEADER} {text[:40]!r}")
    count = int(text)
    size = head.length - count
    if not 0 < size <= MAX_HEAD_BYTES:
        raise FormatError(f"{count} bytes of a file in a body of {head.length}")
    document = bytearray(size)
    connection.receive_into(memoryview(document))
    connection.head = replace(head, length=count)  # the rest is as of a read; `KnownHeads` keeps the other
    return decode_document(document), count, False


def _frames(connection: Connection, paths: Sequence[str]) -> Iterator[tuple[int, Found | Exception]]:
    """Each file's answer as it arrives; a damaged one is left out. Raises WorkerUnavailable."""
    header, seen, wanted = memoryview(bytearray(RANGE_FRAME.size)), set[int](), len(paths)
    while (got := connection.receive_into(header)) == len(header):
        index, status, length, total = RANGE_FRAME.unpack(header)
        if status == _SIGN_OF_LIFE:
            continue
        if index >= wanted or index in seen or status not in (_DATA, _ERROR) or length > _MAX_FRAME_BYTES:
            raise _protocol(connection, f"file {index} of {wanted}, status {status}, {length} bytes")
        seen.add(index)
        payload = bytearray(length)
        if connection.receive_into(memoryview(payload)) != length:
            raise _protocol(connection, "the body ended inside a file")
        if checksum(payload) != total:
            continue
        if status == _ERROR:
            error = named_error(decode_error(0, bytes(payload), connection.where), paths[index])
            if isinstance(error, Exception) and not isinstance(error, (CacheError, UnderStoreError)):
                yield index, error
            continue
        try:
            yield index, decode_file(payload)
        except FormatError as exc:
            raise _protocol(connection, str(exc)) from exc
    if got or len(seen) != wanted:
        raise _protocol(connection, f"{len(seen)} of {wanted} files")
    connection.finish()


def _protocol(connection: Connection, what: str) -> WorkerUnavailable:
    return WorkerUnavailable(f"{connection.where}: {what}", reason="protocol")
