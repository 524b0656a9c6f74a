"""A file's facts and bytes of it in one answer: codecs of `GET /info` with a range and `POST /files`.

Pure. See docs/protocol.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from kara_cache.errors import FormatError
from kara_cache.mount import MAX_PATH_BYTES
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import decode_info, encode_info

BYTES_HEADER = "X-Kara-Bytes"  # how many bytes of the file follow the document
MAX_BYTES = 256 << 10  # that may come along: of more, a second request costs less than a wasted first
MAX_FILES = 1024  # in one request: with MAX_BYTES each, what a client takes at a time
MAX_BODY_BYTES = MAX_FILES * (MAX_PATH_BYTES + 1)


def encode_paths(paths: Iterable[str]) -> bytes:
    """One a line: a kara path holds no line break (`mount.normalize_path`)."""
    return "\n".join(paths).encode()


def decode_paths(body: bytes) -> list[str]:
    """Raises FormatError for more than MAX_FILES, and for what is not UTF-8."""
    try:
        paths = body.decode().split("\n") if body else []
    except UnicodeDecodeError as exc:
        raise FormatError(f"files: {exc}") from exc
    if len(paths) > MAX_FILES:
        raise FormatError(f"files: {len(paths)} paths, at most {MAX_FILES}")
    return paths


def encode_document(info: FileInfo) -> bytes:
    """JSON with a line break behind it; it holds none itself."""
    return json.dumps(encode_info(info)).encode() + b"\n"


def decode_document(line: bytes | bytearray | memoryview) -> FileInfo:
    """Raises FormatError."""
    try:
        document = json.loads(bytes(line).decode())  # text, or json looks for its encoding first
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"file info: no JSON: {bytes(line[:80])!r}") from exc
    return decode_info(document)


def decode_file(payload: bytearray) -> tuple[FileInfo, bytes | None]:
    """A file's document, and the whole of its bytes where they follow it. Raises FormatError."""
    end = payload.find(b"\n") + 1
    info = decode_document(payload[:end])
    content = bytes(memoryview(payload)[end:])
    if not content and (info.size or info.is_dir):
        return info, None
    if info.is_dir or len(content) != info.size:
        raise FormatError(f"{info.path}: {len(content)} bytes of a file of {info.size}")
    return info, content
