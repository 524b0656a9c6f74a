"""What a worker and its fetching process say to each other: an order a packet, or a few answers. Pure.

Both ends are of one version: the worker starts the process from its own files. Offsets in the shared
memory are not said, both compute them: what is wanted lies one behind the other, each from a 4 KiB
boundary on.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Sequence

import msgspec

from kara_cache.errors import CacheError, StaleVersion, UnderStoreError
from kara_worker.fetch.source import Fetched, PageSums, Wanted

MAX_PACKET_BYTES = 128 << 10  # of a seqpacket socket by default: net.core.wmem_default is 208 KiB
_ALIGN = 4096


class Order(msgspec.Struct, frozen=True, array_like=True):
    url: str
    options: bytes  # JSON, secrets by reference
    page_bytes: int
    wanted: tuple[tuple[str, str, int, int], ...]  # relative, version, start, length


class Valid(msgspec.Struct, frozen=True, array_like=True, tag=0):
    index: int
    count: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=1):
    index: int
    seconds: float
    sums: tuple[bytes, ...]  # for each page: its sum and those of its blocks, array Q


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    index: int
    seconds: float
    kind: str
    message: str
    filename: str


_orders = msgspec.msgpack.Decoder(Order)
Answer = Valid | Done | Failed
_answers: msgspec.msgpack.Decoder[list[Answer]] = msgspec.msgpack.Decoder(list[Answer])
encode = msgspec.msgpack.encode
decode_order = _orders.decode
decode_answers = _answers.decode

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        FileNotFoundError,
        IsADirectoryError,
        NotADirectoryError,
        PermissionError,
        StaleVersion,
        UnderStoreError,
        ValueError,
        OSError,
    )
}
_ERRNO = {
    "FileNotFoundError": errno.ENOENT,
    "IsADirectoryError": errno.EISDIR,
    "NotADirectoryError": errno.ENOTDIR,
    "PermissionError": errno.EACCES,
    "OSError": errno.EIO,
}


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each begins, and at the end where the next one would."""
    found = [0]
    for length in lengths:
        found.append(found[-1] + -(-length // _ALIGN) * _ALIGN)
    return found


def order_of(url: str, options: bytes, page_bytes: int, wanted: Sequence[Wanted]) -> Order:
    return Order(url, options, page_bytes, tuple((w.relative, w.version, w.start, w.length) for w in wanted))


def done_of(index: int, seconds: float, sums: Sequence[PageSums]) -> Done:
    packed = (array("Q", [s.page_sum]).tobytes() + s.block_sums.tobytes() for s in sums)
    return Done(index, seconds, tuple(packed))


def failed_of(index: int, seconds: float, exc: Exception) -> Failed:
    kind = next((base.__name__ for base in type(exc).__mro__ if base.__name__ in _KINDS), "")
    if not kind:
        return Failed(index, seconds, "", f"the fetch failed: {type(exc).__name__}: {exc}"[:500], "")
    message, filename = str(exc), ""
    if isinstance(exc, OSError) and exc.strerror:
        message, filename = exc.strerror, os.fsdecode(exc.filename or "")
    return Failed(index, seconds, kind, message[:2000], filename[:4096])


def fetched_of(answer: Done | Failed) -> Fetched:
    if isinstance(answer, Done):
        return Fetched(answer.index, answer.seconds, [_sums(packed) for packed in answer.sums])
    return Fetched(answer.index, answer.seconds, (), _error(answer))


def _sums(packed: bytes) -> PageSums:
    numbers = array("Q", packed)
    return PageSums(numbers[0], numbers[1:])


def _error(answer: Failed) -> Exception:
    kind = _KINDS.get(answer.kind)
    if kind is None:
        return CacheError(answer.message)
    if issubclass(kind, OSError) and answer.kind in _ERRNO:
        return kind(_ERRNO[answer.kind], answer.message, answer.filename or None)
    return kind(answer.message)
