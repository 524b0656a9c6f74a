"""What a coordinator asks of a worker, and what it is told: the bodies of `POST /load`. Pure."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from kara_cache.errors import FormatError, StaleVersion, UnderStoreError
from kara_cache.load_job import is_job_id

MAX_BATCH_BYTES = 8 << 20  # of the body; 1024 pieces with paths of 4 KiB are half of it
MAX_PIECES = 1024

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Action(str, enum.Enum):
    """What is to be done with the pages of the pieces."""

    LOAD = "load"  # fetch what is missing, say what is there then
    LOOK = "look"  # only say what is there
    FACTS = "facts"  # remember size and version, no pages


class Reason(str, enum.Enum):
    """Why a page is not there."""

    NOT_FOUND = "not_found"  # the store has no such file (any more)
    FORBIDDEN = "forbidden"
    CHANGED = "changed"  # the store has another version than the one listed
    UNVERSIONED = "unversioned"  # the store gives nothing to tell old bytes from new: pages are not kept
    NO_ROOM = "no_room"  # the cache is full of pages that must stay
    NOT_KEPT = "not_kept"  # fetched, but the disk or the page store did not take it
    MISSING = "missing"  # was there, and is not any more
    STORE_ERROR = "store_error"
    UNAVAILABLE = "unavailable"  # no worker answered
    INTERNAL = "internal"


RETRIED = frozenset({Reason.STORE_ERROR, Reason.INTERNAL, Reason.NOT_KEPT})
"""Worth another attempt at the store; most others are answers."""


def reason_of(exc: Exception) -> Reason:
    """Of what a store answered."""
    if isinstance(exc, StaleVersion):
        return Reason.CHANGED
    if isinstance(exc, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return Reason.NOT_FOUND
    if isinstance(exc, PermissionError):
        return Reason.FORBIDDEN
    if isinstance(exc, UnderStoreError):
        return Reason.STORE_ERROR
    return Reason.INTERNAL


def text_of(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__)[:300]


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [start, stop) of one version of a file, within one stripe."""

    path: str
    version: str
    size: _Count
    start: _Count
    stop: _Count


class Batch(msgspec.Struct, frozen=True):
    job: str
    action: Action
    pieces: Annotated[tuple[Piece, ...], msgspec.Meta(max_length=MAX_PIECES)]
    since_ns: int = 0  # pages filled from then on count as fetched by this job; 0: all that are here do not
    force: bool = False  # pages from before `since_ns` are fetched again
    verify: bool = False  # pages are read and compared
    origin: str = ""  # a worker that has the pages: the store is asked for what does not come from there
    bandwidth_bytes_per_s: int | None = None
    requests_per_s: float | None = None
    readers: bool = False  # somebody reads from a worker of this job, which may be on the same machine


class Failure(msgspec.Struct, frozen=True, array_like=True):
    piece: int  # index in the batch
    pages: int
    of: int  # pages of the piece
    reason: Reason
    message: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """pages = present + the pages of all failures."""

    pages: int = 0
    present: int = 0
    fetched: int = 0  # of those present
    bytes_fetched: int = 0
    requests: int = 0
    failures: tuple[Failure, ...] = ()
    readers: bool = False  # somebody reads from this worker


_batches = msgspec.json.Decoder(Batch)


def encode_batch(batch: Batch) -> bytes:
    return msgspec.json.encode(batch)


def decode_batch(body: bytes) -> Batch:
    """Raises FormatError."""
    try:
        batch = _batches.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise FormatError(f"load batch: {exc}") from None
    if not is_job_id(batch.job):
        raise FormatError(f"load batch: no job id: {batch.job!r:.80}")
    for piece in batch.pieces:
        if not piece.start <= piece.stop <= piece.size:
            raise FormatError(f"load batch: bytes {piece.start} to {piece.stop} of {piece.size}")
    return batch


def encode_outcome(outcome: Outcome) -> bytes:
    return msgspec.json.encode(outcome)


def decode_outcome(document: object) -> Outcome:
    """Raises FormatError."""
    try:
        return msgspec.convert(document, Outcome)
    except msgspec.ValidationError as exc:
        raise FormatError(f"load outcome: {exc}") from None
