"""The port to one bucket of an object store: keys and single attempts, no paths and no retries.

`ObjectStore` makes an `UnderStore` of it; OSS and S3 are the two implementations.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import urllib3

from kara_cache.ufs.retry import TryAgain

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_COPIED_BYTES = 128 << 10  # of a copying read: larger temporaries fall out of the CPU's cache


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    key: str
    size: int
    etag: str  # without quotes
    mtime: float  # whole seconds: HEAD has no fractions, and listings must say the same as it


@dataclass(frozen=True, slots=True)
class ObjectPage:
    objects: Sequence[ObjectFacts]  # sorted by key
    prefixes: Sequence[str]  # sorted, each ends in the delimiter
    next_token: str  # "" at the end


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """An upload in parts that was begun and neither completed nor aborted."""

    key: str
    id: str
    began_s: float  # since the epoch, by the store's clock


@dataclass(frozen=True, slots=True)
class UploadPage:
    uploads: Sequence[UploadFacts]  # sorted by key
    next_marker: tuple[str, str] | None  # key and id of the last one; None at the end


@dataclass(frozen=True, slots=True)
class PartFacts:
    number: int
    size: int
    etag: str  # MD5 in hex, unless the store encrypts with keys of its own


@dataclass(frozen=True, slots=True)
class PartPage:
    parts: Sequence[PartFacts]  # sorted by number
    next_marker: int  # 0 at the end


class BodyStream(Protocol):
    """Bytes of a body as they come: `lines.Answer` is one."""

    def receive_into(self, view: memoryview) -> int:
        """What one receive brought; 0 at the end, or where the connection broke off."""
        ...

    def finish(self) -> None:
        """Gives the connection back where all was read, closes it otherwise."""
        ...


class PooledStream:
    """The body of a urllib3 response that was not read yet; boto3 and oss2 stand on urllib3."""

    def __init__(self, raw: urllib3.HTTPResponse) -> None:
        self._raw = raw
        self._ended = False

    def receive_into(self, view: memoryview) -> int:
        # Of http.client below, because urllib3's readinto copies through bytes (measured: 1.1 ms for
        # 1 MiB, 0.8 this way) and waits until the buffer is full, deaf to a deadline.
        response = getattr(self._raw, "_fp", None)
        if isinstance(response, http.client.HTTPResponse) and not response.chunked:
            count = response.fp.readinto1(view)
            response.length = (response.length or 0) - count  # the library's count of what is left
            if not count or not response.length:
                response.close()
                self._ended = not response.length
        else:
            with view[:_COPIED_BYTES] as piece:
                count = self._raw.readinto(piece)
            self._ended = not count
        return count

    def finish(self) -> None:
        if self._ended:
            self._raw.release_conn()
        else:
            self._raw.close()  # what follows on this connection is not the next request's answer


class ObjectBody:
    """The body of a GET, as a range of the object. Leaving the block gives the connection back.

    Args:
        content_range: the header; "" where there is none.

    Raises:
        TryAgain: the headers contradict each other.
    """

    def __init__(
        self, stream: BodyStream, *, status: int, etag: str, content_length: str, content_range: str
    ) -> None:
        self._stream = stream
        self.etag = etag.strip('"')
        self.is_whole = status != 206  # the store ignored the range
        self.start = 0
        try:
            self.length = self.total = int(content_length)
            if not self.is_whole:
                self.start, stop, self.total = _parse_range(content_range)
                if stop - self.start != self.length:
                    raise ValueError(f"{self.length} bytes in the range {self.start}-{stop - 1}")
        except ValueError as error:
            stream.finish()
            raise TryAgain(f"contradictory headers: {error}") from error
        self._left = self.length

    def read_into(self, buffer: memoryview) -> int:
        """What one receive brought, straight into `buffer`; 0 at the end of the connection."""
        with buffer[: self._left] as piece:
            try:
                count = self._stream.receive_into(piece)
            except (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError) as error:
                raise TryAgain(f"connection broke: {type(error).__name__}: {error}") from error
        self._left -= count
        return count

    def __enter__(self) -> ObjectBody:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.finish()


def _parse_range(header: str) -> tuple[int, int, int]:
    """Start, stop and the size of the whole object."""
    matched = _CONTENT_RANGE.fullmatch(header)
    if matched is None:
        raise ValueError(f"Content-Range {header!r}")
    start, last, total = (int(group) for group in matched.groups())
    return start, last + 1, total


class ObjectApi(Protocol):
    """One bucket. Thread-safe and usable after a fork.

    Each call is one attempt and raises, besides what its line says: FileNotFoundError (no such key or
    bucket), PermissionError (also for wrong credentials), TryAgain, and UnderStoreError for what no
    attempt will cure. Messages name the object's URL and the store's request id, and no secret.
    """

    @property
    def url(self) -> str:
        """Of the bucket, without a slash at the end."""
        ...

    def head(self, key: str) -> ObjectFacts: ...

    def get(self, key: str, start: int, stop: int, *, etag: str | None) -> ObjectBody | None:
        """Bytes from `start` up to `stop` or the end; None where `start` is not before the end.

        Raises StaleVersion when the object has another ETag, if the store knows If-Match; the
        caller compares the body's ETag as well.
        """
        ...

    def page(self, prefix: str, *, delimiter: str, token: str, limit: int) -> ObjectPage: ...

    def put(self, key: str, data: bytes | bytearray | memoryview) -> str:
        """Returns the ETag."""
        ...

    def delete(self, key: str) -> None:
        """No error where the key does not exist."""
        ...

    def begin_upload(self, key: str) -> str: ...

    def put_part(self, key: str, upload: str, number: int, data: bytes | bytearray) -> str:
        """Returns the part's ETag; numbers start at 1. Raises UploadGone."""
        ...

    def complete_upload(self, key: str, upload: str, etags: Sequence[str]) -> str:
        """Returns the object's ETag, "" where the answer has none. Raises UploadGone."""
        ...

    def uploads(self, prefix: str, *, marker: tuple[str, str] | None) -> UploadPage:
        """Those of keys that begin with `prefix`, behind `marker`."""
        ...

    def parts(self, key: str, upload: str, *, marker: int) -> PartPage:
        """The parts that have arrived, behind number `marker`. Raises UploadGone."""
        ...

    def abort_upload(self, key: str, upload: str) -> None: ...

    def append_position(self, key: str) -> int:
        """The size of what can be appended to, 0 where nothing is. Else io.UnsupportedOperation."""
        ...

    def append(self, key: str, position: int, data: bytes | bytearray) -> str:
        """Returns the ETag. Raises StaleVersion when the object does not end at `position`."""
        ...

    def close(self) -> None: ...
