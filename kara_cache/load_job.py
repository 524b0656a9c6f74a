"""Load jobs as values: what was asked, how far it is, what came of it, and their JSON. Pure.

A job brings a file, or every file below a directory, into the cache. It is known by its path (one
running job for each path; the last one is remembered) and by its id.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from kara_cache.errors import FormatError

MAX_SAMPLES = 10
"""Paths kept for each reason of failure: enough to see a pattern, few enough for one value in etcd."""

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_FILTER_CHARACTERS = 1000
_MAX_REPLICAS = 64


class LoadState(str, enum.Enum):
    """Compares equal to its value. The first three go on by themselves, the last three are final."""

    QUEUED = "QUEUED"  # taken, no worker has begun
    RUNNING = "RUNNING"  # files are listed and loaded
    VERIFYING = "VERIFYING"  # everything was loaded once; every page is looked for
    SUCCEEDED = "SUCCEEDED"  # every page was found where readers will look for it
    FAILED = "FAILED"  # the receipt says what is missing and why
    STOPPED = "STOPPED"  # somebody asked for that; what is loaded stays

    @property
    def final(self) -> bool:
        return self in (LoadState.SUCCEEDED, LoadState.FAILED, LoadState.STOPPED)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load. Limits are for each worker, so that more workers load faster."""

    replicas: int = 1  # workers that get each page; a mount's own `replicas` counts if it is larger
    skip_if_cached: bool = True  # False: fetch also what is there, unless this job fetched it
    metadata_only: bool = False  # sizes and versions, for mounts that trust them for a while; no pages
    verify: bool = False  # read every page back at the end and compare it with its checksum
    partial_listing: bool = True  # begin before the last file is listed; False: count everything first
    bandwidth_bytes_per_s: int | None = None  # from the store
    requests_per_s: float | None = None  # to the store
    file_filter: str | None = None  # regular expression, searched in the path below the one loaded

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= _MAX_REPLICAS:
            raise ValueError(f"replicas: want 1 .. {_MAX_REPLICAS}, got {self.replicas}")
        if self.bandwidth_bytes_per_s is not None and self.bandwidth_bytes_per_s < 1:
            raise ValueError(f"bandwidth_bytes_per_s: want 1 or more, got {self.bandwidth_bytes_per_s}")
        if self.requests_per_s is not None and not 0 < self.requests_per_s < float("inf"):
            raise ValueError(f"requests_per_s: want more than 0, got {self.requests_per_s}")
        if self.file_filter is not None:
            if len(self.file_filter) > _MAX_FILTER_CHARACTERS:
                raise ValueError(
                    f"file_filter: {len(self.file_filter)} characters, at most {_MAX_FILTER_CHARACTERS}"
                )
            try:
                re.compile(self.file_filter)
            except re.error as exc:
                raise ValueError(f"file_filter {self.file_filter!r}: {exc}") from None


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a job is. Counts only grow while it loads; copies on several workers count each."""

    files_listed: int = 0  # found so far, whether loaded or not
    bytes_listed: int = 0
    listing_complete: bool = False  # the two above are totals
    files: int = 0  # dealt with, failures included
    bytes: int = 0  # of the files dealt with
    files_verified: int = 0  # whose pages were looked for at the end
    pages_fetched: int = 0  # from the store, for this job
    bytes_fetched: int = 0
    pages_skipped: int = 0  # were there already
    store_requests: int = 0  # for data; listings are not counted
    pages_failed: int = 0
    retries: int = 0  # pages that were tried again
    seconds: float = 0.0  # that coordinators have spent on the job

    @property
    def fraction(self) -> float:
        """Of the bytes listed; 0.0 while the listing goes on."""
        if not self.listing_complete:
            return 0.0
        return min(1.0, self.bytes / self.bytes_listed) if self.bytes_listed else 1.0


@dataclass(frozen=True, slots=True)
class LoadReceipt:
    """What is there at the end: pages_expected = pages_present + the sum of `failed`."""

    files: int
    bytes: int
    pages_expected: int  # of all files of the manifest, times the replicas
    pages_present: int  # found on the workers that own them, after everything was loaded
    failed: dict[str, int]  # pages by reason: not_found, forbidden, changed, no_room, store_error, ...
    samples: dict[str, list[str]]  # by the same reasons, at most MAX_SAMPLES paths each
    bytes_fetched: int
    store_requests: int
    manifest: str  # `ManifestSum` of every file expected, in the store's order
    content_verified: bool  # pages were read and compared, not only found
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadJob:
    """One job as any worker tells it."""

    id: str  # 32 hex digits
    path: str  # full kara path
    state: LoadState
    options: LoadOptions
    progress: LoadProgress
    receipt: LoadReceipt | None  # only of a job that SUCCEEDED or FAILED
    submitted_s: float  # Unix seconds
    coordinator: str = ""  # id of the worker that runs it
    message: str = ""  # why it failed or is held up, for people
    finished_s: float | None = None  # Unix seconds


@dataclass(slots=True)
class ManifestSum:
    """A checksum over files in order that can be put aside and taken up again.

    sum_0 is 32 zero bytes, sum_n = BLAKE2b-256(sum_(n-1) + path NUL version NUL size), all in UTF-8.
    """

    value: bytes = field(default=bytes(32))

    def add(self, path: str, version: str, size: int) -> None:
        line = f"{path}\0{version}\0{size}".encode("utf-8", "surrogatepass")
        self.value = blake2b(self.value + line, digest_size=32).digest()


def is_job_id(text: str) -> bool:
    """Paths begin with a slash, so nothing is both."""
    return _ID.fullmatch(text) is not None


def encode_job(job: LoadJob) -> bytes:
    return msgspec.json.encode(job)


def decode_job(data: bytes | str) -> LoadJob:
    """Raises FormatError. Fields of a newer version are ignored."""
    try:
        return msgspec.json.decode(data, type=LoadJob)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise FormatError(f"load job: {exc}") from None


def job_document(job: LoadJob) -> dict[str, Any]:
    """The same as an object of the `json` module."""
    return dict(msgspec.to_builtins(job))


def decode_job_document(document: Any) -> LoadJob:
    """Raises FormatError."""
    try:
        return msgspec.convert(document, type=LoadJob)
    except msgspec.ValidationError as exc:
        raise FormatError(f"load job: {exc}") from None


def decode_options(document: Any) -> LoadOptions:
    """From a request: an unknown key is a ValueError, as it would be a promise not kept."""
    if not isinstance(document, dict):
        raise ValueError(f"load options: want an object, got {document!r:.100}")
    known = set(LoadOptions.__dataclass_fields__)
    if unknown := sorted(set(document) - known):
        raise ValueError(f"load options: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(document, type=LoadOptions)
    except msgspec.ValidationError as exc:
        raise ValueError(f"load options: {exc}") from None
