"""The body of a read, accepted only when every piece has the sum that was taken at the fill."""

from __future__ import annotations

from time import monotonic

from kara_cache.checksum import checksum
from kara_cache.errors import FormatError, PageCorrupt, WorkerUnavailable
from kara_cache.transport.connection import Connection
from kara_cache.transport.response import page_bytes_of, sums_of
from kara_cache.wire import pieces


def receive_verified(connection: Connection, path: str, start: int, view: memoryview) -> tuple[bytes, float]:
    """Fills `view` with bytes of `path` from byte `start` on.

    Returns the fields that came with the sums, of the head or of the trailers, and when the last byte came.

    Raises:
        PageCorrupt: a piece differs from its sum.
        WorkerUnavailable: the body is not `view` long to the byte, or its framing is wrong.
    """
    want, head = len(view), connection.head
    if head.length is not None and head.length != want:
        raise _protocol(connection, f"{path}: {head.length} bytes announced at {start}, {want} are there")
    got = connection.receive_into(view)
    if got != want:
        raise _protocol(connection, f"{path}: the body ended after {got} of {want} bytes at {start}")
    trailers = connection.finish()
    complete = monotonic()
    fields = trailers if head.length is None else head.fields
    if head.total >= 0:
        page_bytes, sums = head.page_bytes, [head.total]
    else:
        try:
            page_bytes = page_bytes_of(head)
            sums = sums_of(fields)
        except FormatError as exc:
            raise _protocol(connection, f"{path}: {exc}") from exc
    _verify(connection, path, start, view, page_bytes, sums)
    return fields, complete


def _verify(
    connection: Connection, path: str, start: int, view: memoryview, page_bytes: int, sums: list[int]
) -> None:
    first, last = start // page_bytes, (start + len(view) - 1) // page_bytes
    if len(sums) != last - first + 1:
        raise _protocol(connection, f"{path}: {len(sums)} sums for {last - first + 1} pieces")
    if first == last:
        if (got := checksum(view)) != sums[0]:
            raise _corrupt(connection, path, start, start + len(view), got, sums[0])
        return
    for (at, stop), wanted in zip(pieces(start, len(view), page_bytes), sums, strict=True):
        if (got := checksum(view[at - start : stop - start])) != wanted:
            raise _corrupt(connection, path, at, stop, got, wanted)


def _corrupt(connection: Connection, path: str, start: int, stop: int, got: int, want: int) -> PageCorrupt:
    where = f"{path}: bytes [{start}, {stop}) from {connection.where}"
    return PageCorrupt(f"{where}: checksum {got:#018x}, want {want:#018x}")


def _protocol(connection: Connection, what: str) -> WorkerUnavailable:
    return WorkerUnavailable(f"{connection.where}: {what}", reason="protocol")
