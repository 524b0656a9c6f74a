"""ListObjects of both versions over a store's own listing, a page at a time."""

from __future__ import annotations

import time
from base64 import b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import quote

from kara_cache.mount import Mount
from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio.s3_xml import document, element, etag, iso_time, text
from kara_worker.mounted_stores import MountedStores

_MAX_KEYS = 1000
_OPEN_LISTINGS = 64
_OPEN_S = 120.0  # a client that wants its next page wants it soon


@dataclass(frozen=True, slots=True)
class ListRequest:
    """What both versions ask for."""

    prefix: str
    delimiter: str
    max_keys: int
    after: str  # entries up to this key or common prefix are left out
    token: str  # the continuation token as it was sent, "" for none
    encode: bool
    version: int

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> ListRequest:
        """Raises S3Error."""
        version = 2 if query.get("list-type") == "2" else 1
        limit = query.get("max-keys", str(_MAX_KEYS))
        if not limit.isascii() or not limit.isdigit():
            raise S3Error("InvalidArgument", f"max-keys {limit[:20]!r}")
        token = query.get("continuation-token", "") if version == 2 else ""
        after = query.get("start-after" if version == 2 else "marker", "")
        if token:
            after = _decode(token)
        return cls(
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            max_keys=min(int(limit), _MAX_KEYS),
            after=after,
            token=token,
            encode=query.get("encoding-type") == "url",
            version=version,
        )


@dataclass(slots=True)
class ListPage:
    """Entries in key order: a file, or a common prefix as text."""

    entries: list[tuple[str, FileInfo | None]] = field(default_factory=list)
    truncated: bool = False


class S3Listing:
    """Thread-safe; for threads, since stores are asked.

    A listing that was not ended stays open for its next page, because stores cannot begin in the
    middle. One that was forgotten is begun again, and skipped through up to where it was.
    """

    def __init__(self, stores: MountedStores) -> None:
        self._stores = stores
        self._open: OrderedDict[
            tuple[str, str, str, str], tuple[float, Iterator[tuple[str, FileInfo | None]]]
        ]
        self._open = OrderedDict()  # by mount, prefix, delimiter and last key
        self._lock = Lock()  # guards _open

    def page(self, mount: Mount, request: ListRequest) -> ListPage:
        """Empty where nothing is there, as in S3."""
        entries = self._take(mount, request)
        page = ListPage()
        if not request.max_keys:
            return page
        try:
            for entry in entries:
                if entry[0] <= request.after:
                    continue
                page.entries.append(entry)
                if len(page.entries) == request.max_keys:
                    break
            page.truncated = self._keep(mount, request, page, entries)
        except (FileNotFoundError, NotADirectoryError):
            return page
        return page

    def _take(self, mount: Mount, request: ListRequest) -> Iterator[tuple[str, FileInfo | None]]:
        with self._lock:
            known = self._open.pop((mount.name, request.prefix, request.delimiter, request.after), None)
        if known is not None and request.after and time.monotonic() - known[0] < _OPEN_S:
            return known[1]
        return _entries(self._stores, mount, request.prefix, request.delimiter)

    def _keep(
        self,
        mount: Mount,
        request: ListRequest,
        page: ListPage,
        entries: Iterator[tuple[str, FileInfo | None]],
    ) -> bool:
        """Whether there is more; then the rest waits for its next page."""
        if len(page.entries) < request.max_keys:
            return False
        following = next(entries, None)
        if following is None:
            return False
        last = page.entries[-1][0]
        with self._lock:
            self._open[mount.name, request.prefix, request.delimiter, last] = (
                time.monotonic(),
                _chain(following, entries),
            )
            while len(self._open) > _OPEN_LISTINGS:
                self._open.popitem(last=False)
        return True


def _chain(
    first: tuple[str, FileInfo | None], rest: Iterator[tuple[str, FileInfo | None]]
) -> Iterator[tuple[str, FileInfo | None]]:
    yield first
    yield from rest


def _entries(
    stores: MountedStores, mount: Mount, prefix: str, delimiter: str
) -> Iterator[tuple[str, FileInfo | None]]:
    """Keys below the prefix in order, those with the delimiter after it rolled up into common prefixes."""
    directory = prefix.rpartition("/")[0]
    place = f"/{mount.name}/{directory}" if directory else f"/{mount.name}"
    flat = delimiter == "/"
    cut, last_common = len(mount.name) + 2, None
    for info in stores.list(place, recursive=not flat):
        key = info.path[cut:]
        if info.is_dir:
            key += "/"
        if not key.startswith(prefix):
            continue
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end >= 0:
            common = key[: end + len(delimiter)]
            if common != last_common:
                last_common = common
                yield common, None
        elif not info.is_dir:
            yield key, info


def listing_document(bucket: str, request: ListRequest, page: ListPage) -> bytes:
    def name(value: str) -> str:
        return quote(value, safe="/") if request.encode else value

    last = page.entries[-1][0] if page.truncated else ""
    parts = [
        text("Name", bucket),
        text("Prefix", name(request.prefix)),
        text("MaxKeys", request.max_keys),
        text("IsTruncated", "true" if page.truncated else "false"),
    ]
    if request.delimiter:
        parts.append(text("Delimiter", name(request.delimiter)))
    if request.encode:
        parts.append(text("EncodingType", "url"))
    if request.version == 2:
        parts.append(text("KeyCount", len(page.entries)))
        if request.token:
            parts.append(text("ContinuationToken", request.token))
        elif request.after:
            parts.append(text("StartAfter", name(request.after)))
        if last:
            parts.append(text("NextContinuationToken", _encode(last)))
    else:
        parts.append(text("Marker", name(request.after)))
        if last:
            parts.append(text("NextMarker", name(last)))
    for key, info in page.entries:
        if info is None:
            parts.append(element("CommonPrefixes", text("Prefix", name(key))))
        else:
            parts.append(
                element(
                    "Contents",
                    text("Key", name(key)),
                    text("LastModified", iso_time(info.mtime)),
                    text("ETag", etag(info)),
                    text("Size", info.size),
                    text("StorageClass", "STANDARD"),
                )
            )
    return document("ListBucketResult", *parts)


def _encode(key: str) -> str:
    return urlsafe_b64encode(key.encode()).decode()


def _decode(token: str) -> str:
    try:
        return b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise S3Error("InvalidArgument", "the continuation token is not one of ours") from None
