"""What the head of an HTTP response says about a file: range, version, size. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple

_CONTENT_RANGE = re.compile(r"bytes +(\d+)-(\d+)/(\d+|\*)", re.ASCII)  # RFC 9110, 14.4
_UNPINNED = "~"  # first character of a version that no If-Match can carry; no ETag starts with it


class ContentRange(NamedTuple):
    start: int
    stop: int
    total: int | None  # of the whole file; None where the server says "*"

    @property
    def length(self) -> int:
        return self.stop - self.start


def content_range(headers: Mapping[str, str]) -> ContentRange | None:
    """None for a header that is missing, of another unit or impossible in itself."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None:
        return None
    start, stop = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if stop <= start or (total is not None and stop > total):
        return None
    return ContentRange(start, stop, total)


def content_length(headers: Mapping[str, str]) -> int | None:
    """None where the body ends otherwise. A chunked body's Content-Length says nothing (RFC 9112, 6.3)."""
    text = headers.get("Content-Length", "").strip()
    if "Transfer-Encoding" in headers or not (text.isascii() and text.isdigit()):
        return None
    return int(text)


def encoding(headers: Mapping[str, str]) -> str:
    """Of the content; "" where the bytes are the file's own."""
    value = headers.get("Content-Encoding", "").strip().lower()
    return "" if value == "identity" else value


def version_of(headers: Mapping[str, str], size: int | None) -> str:
    """The strong ETag; else weak ETag, Last-Modified and size together; "" where there is none of these.

    A weak ETag or a time of whole seconds alone would not notice every overwrite; with the size they
    notice most. What remains is in `HttpStore`'s limits.
    """
    etag = headers.get("ETag", "").strip()
    if etag and not etag.startswith("W/"):
        return etag
    modified = headers.get("Last-Modified", "").strip()
    if size is None or not (etag or modified):
        return ""
    return f"{_UNPINNED}{etag}|{modified}|{size}"


def condition(version: str) -> dict[str, str]:
    """The headers that make a server refuse (412) another version; RFC 9110, 13.1.1: strong ETags only."""
    return {"If-Match": version} if version and not version.startswith(_UNPINNED) else {}


def modified_at(headers: Mapping[str, str]) -> float | None:
    """Last-Modified in seconds since the epoch."""
    moment = _moment(headers.get("Last-Modified", ""))
    return moment.timestamp() if moment is not None else None


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Retry-After, a number of seconds or a date (RFC 9110, 10.2.3); never negative."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    moment = _moment(text)
    return max(0.0, moment.timestamp() - now_s) if moment is not None else None


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
