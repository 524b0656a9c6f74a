"""The data protocol between client and worker: names, codes and codecs, no sockets. See docs/protocol.md.

HTTP/1.1. Paths are below PREFIX; arguments are query parameters, percent-encoded as UTF-8.
Ranges travel as `start` and `length`. A read answers with a checksum for each *piece*: the parts
into which the worker's page boundaries cut the range.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kara_cache.errors import (
    AccessDenied,
    CacheError,
    ConfigError,
    FormatError,
    PageCorrupt,
    StaleVersion,
    UnderStoreError,
    WorkerBusy,
    WorkerUnavailable,
)
from kara_cache.ufs.base import FileInfo

PREFIX = "/kara/v1"
SUM_HEADER = "X-Kara-Sum"  # comma-separated lower-case hex, one for each piece; a trailer when the body is chunked
PAGE_HEADER = "X-Kara-Page"  # the worker's page size in bytes
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
    (FileNotFoundError, "not_found", 404),
    (FileExistsError, "exists", 409),
    (IsADirectoryError, "is_a_directory", 409),
    (NotADirectoryError, "not_a_directory", 409),
    (PermissionError, "permission", 403),
    (ConfigError, "config", 400),
    (FormatError, "format", 400),
    (ValueError, "value", 400),
    (NotImplementedError, "unsupported", 405),
    (OSError, "os_error", 409),
)
_BY_CODE = {code: kind for kind, code, _ in _ERRORS}


def encode_error(error: BaseException) -> tuple[int, dict[str, str]]:
    """HTTP status and JSON body for an error; anything unforeseen is a 500 without its text."""
    for kind, code, status in _ERRORS:
        if isinstance(error, kind):
            return status, {"error": code, "message": _text(error)}
    return 500, {"error": "internal", "message": f"the worker failed: {type(error).__name__}"}


def decode_error(status: int, body: bytes, where: str) -> BaseException:
    """The exception that `encode_error` was given, or WorkerUnavailable for what is not ours."""
    try:
        document = json.loads(body)
        kind, message = _BY_CODE[document["error"]], str(document["message"])
    except (ValueError, KeyError, TypeError):
        return WorkerUnavailable(f"{where}: HTTP {status}", reason="protocol")
    return kind(message)


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
    try:
        return FileInfo(
            path=document["path"],
            size=int(document["size"]),
            version=document["version"],
            mtime=document.get("mtime"),
            is_dir=bool(document.get("dir", False)),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise FormatError(f"file info: {exc!r} in {document!r}") from exc


# -- many ranges in one request ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RangeFile:
    """One version of one file, as ranges refer to it."""

    path: str
    version: str
    size: int


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [start, start + length) of `files[file]`."""

    file: int
    start: int
    length: int


_COUNTS = struct.Struct("<II")
_FILE = struct.Struct("<HHQ")
_RANGE = struct.Struct("<IIQ")
RANGE_FRAME = struct.Struct("<IIQQ")  # index, status (0 = data, 1 = error document), length, checksum


def encode_ranges(files: Sequence[RangeFile], ranges: Sequence[FileRange]) -> bytes:
    """counts(files, ranges) | files: path length, version length, size, path, version | ranges: file, length, start."""
    parts = [_COUNTS.pack(len(files), len(ranges))]
    for file in files:
        path, version = file.path.encode(), file.version.encode()
        parts += (_FILE.pack(len(path), len(version), file.size), path, version)
    parts += (_RANGE.pack(item.file, item.length, item.start) for item in ranges)
    return b"".join(parts)


def decode_ranges(body: bytes | bytearray | memoryview) -> tuple[list[RangeFile], list[FileRange]]:
    """Raises FormatError on anything malformed, too large, or referring to a file that is not listed."""
    view = memoryview(body)
    try:
        n_files, n_ranges = _COUNTS.unpack_from(view)
        if n_files > n_ranges or n_ranges > MAX_RANGES:
            raise FormatError(f"ranges: {n_files} files, {n_ranges} ranges; at most {MAX_RANGES} ranges")
        at = _COUNTS.size
        files = []
        for _ in range(n_files):
            path_bytes, version_bytes, size = _FILE.unpack_from(view, at)
            at += _FILE.size
            end = at + path_bytes + version_bytes
            if end > len(view):
                raise FormatError("ranges: body ends inside a path")
            text = bytes(view[at:end])
            files.append(RangeFile(text[:path_bytes].decode(), text[path_bytes:].decode(), size))
            at = end
        if len(view) - at != n_ranges * _RANGE.size:
            raise FormatError(f"ranges: {len(view) - at} bytes for {n_ranges} ranges")
        ranges = [FileRange(file, start, length) for file, length, start in _RANGE.iter_unpack(view[at:])]
    except (struct.error, UnicodeDecodeError) as exc:
        raise FormatError(f"ranges: {exc}") from exc
    for item in ranges:
        if item.file >= n_files:
            raise FormatError(f"ranges: file {item.file} of {n_files}")
    return files, ranges
