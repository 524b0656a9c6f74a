"""The data protocol between client and worker: names, codes and codecs, no sockets. See docs/protocol.md.

HTTP/1.1. Paths are below PREFIX; arguments are query parameters, percent-encoded as UTF-8.
Ranges travel as `start` and `length`. A read answers with a checksum for each *piece*: the parts
into which the worker's page boundaries cut the range.
"""

from __future__ import annotations

import errno
import io
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple
from urllib.parse import quote

from kara_cache.errors import (
    AccessDenied,
    CacheError,
    ConfigError,
    FormatError,
    KaraError,
    LeaseLost,
    MembershipError,
    PageCorrupt,
    StaleVersion,
    UnderStoreError,
    WorkerBusy,
    WorkerUnavailable,
)
from kara_cache.ufs.base import FileInfo

PREFIX = "/kara/v1"
STAGES_HEADER = "X-Kara-Stages"  # seconds of the worker's own part, `read_stages`; also a trailer
SUM_HEADER = "X-Kara-Sum"  # lower-case hex, comma-separated, one for each piece; a trailer of a chunked body
PAGE_HEADER = "X-Kara-Page"  # the worker's page size in bytes
PASS_HEADER = "X-Kara-Pass"  # the page's descriptor came along: "own", or where its record and its data begin
SOURCE_HEADER = "X-Kara-Source"  # "hit" when every page was on SSD, else "fill"
MAX_HEAD_BYTES = 32 << 10  # request or response head; paths are at most a few KiB (S3: 1024 bytes)
MAX_READ_BYTES = 64 << 20  # one stripe
MAX_RANGES = 8192  # in one request
MAX_RANGES_BODY_BYTES = 8 << 20


def read_target(path: str, info_version: str, size: int, *, keep: bool) -> str:
    """The part of a read's request target that names the file; `&start=..&length=..` follows it."""
    keep_flag = "" if keep else "&keep=0"
    return f"{PREFIX}/read?path={quote(path)}&version={quote(info_version, safe='')}&size={size}{keep_flag}"


def pieces(start: int, length: int, page_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts [start, start + length) at page boundaries: (start, stop) of each piece, none empty."""
    at, stop = start, start + length
    while at < stop:
        end = min(stop, at - at % page_bytes + page_bytes)
        yield at, end
        at = end


# -- errors ------------------------------------------------------------------------------------------

_ERRORS: tuple[tuple[type[BaseException], str, int], ...] = (
    # the most specific class first: the first match by isinstance names the code and HTTP status
    (AccessDenied, "access_denied", 401),
    (StaleVersion, "stale", 412),
    (PageCorrupt, "corrupt", 503),
    (WorkerBusy, "busy", 503),
    (WorkerUnavailable, "unavailable", 503),
    (CacheError, "cache_error", 503),
    (UnderStoreError, "under_store", 502),
    (LeaseLost, "lease_lost", 503),
    (MembershipError, "membership", 503),
    (ConfigError, "config", 400),
    (FormatError, "format", 400),
    (KaraError, "kara_error", 500),
    (FileNotFoundError, "not_found", 404),
    (FileExistsError, "exists", 409),
    (IsADirectoryError, "is_a_directory", 409),
    (NotADirectoryError, "not_a_directory", 409),
    (PermissionError, "permission", 403),
    (io.UnsupportedOperation, "unsupported_operation", 405),
    (ValueError, "value", 400),
    (NotImplementedError, "unsupported", 405),
)
_BY_CODE = {code: kind for kind, code, _ in _ERRORS}
# Facts about files that have no builtin class. Any other bare OSError (EMFILE, EIO, ECONNRESET ...) is the
# worker's own trouble: it must not reach a reader as an answer, so it travels as "internal".
_BY_ERRNO = {
    errno.ENOTEMPTY: "not_empty",
    errno.ENAMETOOLONG: "name_too_long",
    errno.EROFS: "read_only",
}
_ERRNO_OF = {code: number for number, code in _BY_ERRNO.items()}
_INTERNAL = "internal"


def encode_error(error: BaseException) -> tuple[int, dict[str, str]]:
    """HTTP status and JSON body for an error; anything unforeseen is a 500 without its text."""
    for kind, code, status in _ERRORS:
        if isinstance(error, kind):
            return status, {"error": code, "message": _text(error)}
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return 409, {"error": _BY_ERRNO[error.errno], "message": _text(error)}
    return 500, {"error": _INTERNAL, "message": f"the worker failed: {type(error).__name__}"}


def decode_error(status: int, body: bytes, where: str) -> BaseException:
    """The exception that `encode_error` was given, or WorkerUnavailable for what is not ours."""
    try:
        document = json.loads(body)
        code, message = document["error"], document["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        code = message = None
    if not isinstance(code, str) or not isinstance(message, str):
        return WorkerUnavailable(f"{where}: HTTP {status}", reason="protocol")
    if code in _BY_CODE:
        return _BY_CODE[code](message)
    if code in _ERRNO_OF:
        return OSError(_ERRNO_OF[code], message)
    reason = _INTERNAL if code == _INTERNAL else "protocol"
    return WorkerUnavailable(f"{where}: HTTP {status}: {message}", reason=reason)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


# -- file facts --------------------------------------------------------------------------------------


def encode_info(info: FileInfo) -> dict[str, Any]:
    document: dict[str, Any] = {"path": info.path, "size": info.size, "version": info.version}
    if info.mtime is not None:
        document["mtime"] = info.mtime
    if info.is_dir:
        document["dir"] = True
    return document


def decode_info(document: dict[str, Any]) -> FileInfo:
    """Raises FormatError for any other shape or type than `encode_info` writes."""
    try:
        path, size, version = document["path"], document["size"], document["version"]
        mtime, is_dir = document.get("mtime"), document.get("dir", False)
    except (KeyError, TypeError, AttributeError) as exc:
        raise FormatError(f"file info: {exc!r} in {document!r:.200}") from exc
    if (
        not (isinstance(path, str) and isinstance(version, str))
        or type(size) is not int
        or size < 0
        or type(mtime) not in (int, float, type(None))
        or type(is_dir) is not bool
    ):
        raise FormatError(f"file info: a value of the wrong type or sign in {document!r:.200}")
    return FileInfo(path=path, size=size, version=version, mtime=mtime, is_dir=is_dir)


# -- many ranges in one request ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RangeFile:
    """One version of one file, as ranges refer to it."""

    path: str
    version: str
    size: int


class FileRange(NamedTuple):  # thousands for a request: a dataclass takes four times as long to make
    """Bytes [start, start + length) of `files[file]`."""

    file: int
    start: int
    length: int


_COUNTS = struct.Struct("<II")
_FILE = struct.Struct("<HHQ")
_RANGE = struct.Struct("<IIQ")
RANGE_FRAME = struct.Struct("<IIQQ")  # index, status, length, checksum
FRAME_DATA, FRAME_ERROR, FRAME_SIGN_OF_LIFE, FRAME_JOINED = range(4)  # status
MAX_JOINED_BYTES = 256 << 10  # of data in one frame of several ranges


def encode_ranges(files: Sequence[RangeFile], ranges: Sequence[FileRange]) -> bytes:
    """counts | each file: path length, version length, size, path, version | each range: file, length, start

    The limits above are the caller's to keep; a value that does not fit its field is a ValueError.
    """
    try:
        parts = [_COUNTS.pack(len(files), len(ranges))]
        for file in files:
            path, version = file.path.encode(), file.version.encode()
            parts += (_FILE.pack(len(path), len(version), file.size), path, version)
        parts += [_RANGE.pack(file_number, length, start) for file_number, start, length in ranges]
    except struct.error as exc:
        raise ValueError(f"ranges: a value does not fit its field: {exc}") from exc
    return b"".join(parts)


def decode_ranges(body: bytes | bytearray | memoryview) -> tuple[list[RangeFile], list[FileRange]]:
    """Raises FormatError on anything malformed, too large, or referring to a file that is not listed."""
    view = memoryview(body)
    if len(view) > MAX_RANGES_BODY_BYTES:
        raise FormatError(f"ranges: {len(view)} bytes, at most {MAX_RANGES_BODY_BYTES}")
    try:
        n_files, n_ranges = _COUNTS.unpack_from(view)
        if n_files > n_ranges or n_ranges > MAX_RANGES:
            raise FormatError(f"ranges: {n_files} files, {n_ranges} ranges; at most {MAX_RANGES} ranges")
        files, at = _decode_files(view, n_files)
        if len(view) - at != n_ranges * _RANGE.size:
            raise FormatError(f"ranges: {len(view) - at} bytes for {n_ranges} ranges")
        made = tuple.__new__  # in half the time that FileRange() takes
        ranges = [
            made(FileRange, (file, start, length)) for file, length, start in _RANGE.iter_unpack(view[at:])
        ]
    except (struct.error, UnicodeDecodeError) as exc:
        raise FormatError(f"ranges: {exc}") from exc
    if ranges and (most := max(map(itemgetter(0), ranges))) >= n_files:
        raise FormatError(f"ranges: file {most} of {n_files}")
    if ranges and (most := max(map(itemgetter(2), ranges))) > MAX_READ_BYTES:
        raise FormatError(f"ranges: {most} bytes in one range, at most {MAX_READ_BYTES}")
    return files, ranges


def _decode_files(view: memoryview, count: int) -> tuple[list[RangeFile], int]:
    """The files, and where the ranges begin."""
    files, at = [], _COUNTS.size
    for _ in range(count):
        path_bytes, version_bytes, size = _FILE.unpack_from(view, at)
        at += _FILE.size
        end = at + path_bytes + version_bytes
        if end > len(view):
            raise FormatError("ranges: body ends inside a path")
        text = bytes(view[at:end])
        files.append(RangeFile(text[:path_bytes].decode(), text[path_bytes:].decode(), size))
        at = end
    return files, at
