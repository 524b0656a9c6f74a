"""The XML of S3: answers as text, the two documents that clients send as values."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from datetime import datetime, timezone
from email.utils import formatdate
from hashlib import blake2b
from xml.sax.saxutils import escape

from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.s3_errors import S3Error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_ETAG_SAFE = frozenset("0123456789abcdefABCDEF-")


def element(name: str, *content: str) -> str:
    """Content is markup already; `text` makes it of data."""
    return f"<{name}>{''.join(content)}</{name}>"


def text(name: str, value: object) -> str:
    return f"<{name}>{escape(str(value))}</{name}>"


def document(name: str, *content: str) -> bytes:
    return f'{_DECLARATION}<{name} xmlns="{NAMESPACE}">{"".join(content)}</{name}>'.encode()


def error_document(error: S3Error, resource: str, request_id: str) -> bytes:
    return f"{_DECLARATION}{error_element(error, resource, request_id)}".encode()


def error_element(error: S3Error, resource: str, request_id: str) -> str:
    more = [] if error.object_size is None else [text("ActualObjectSize", error.object_size)]
    return element(
        "Error",
        text("Code", error.code),
        text("Message", error),
        *more,
        text("Resource", resource),
        text("RequestId", request_id),
    )


def etag(info: FileInfo) -> str:
    """The store's version where it can stand in an ETag (S3's and OSS's own do), else a digest of it."""
    if info.version and len(info.version) <= 64 and _ETAG_SAFE.issuperset(info.version):
        return f'"{info.version}"'
    return f'"{blake2b(f"{info.version}:{info.size}".encode(), digest_size=16).hexdigest()}-0"'


def http_time(mtime: float | None) -> str:
    return formatdate(mtime or 0.0, usegmt=True)


def iso_time(mtime: float | None) -> str:
    moment = datetime.fromtimestamp(mtime or 0.0, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def parse_parts(body: bytes) -> list[tuple[int, str]]:
    """Number and ETag of each part of a CompleteMultipartUpload, in ascending order. Raises S3Error."""
    parts = []
    for part in _children(body, "CompleteMultipartUpload", "Part"):
        number, tag = part.get("PartNumber", ""), part.get("ETag", "")
        if not number.isdigit():
            raise S3Error("MalformedXML", f"part number {number[:20]!r}")
        parts.append((int(number), tag.strip('"')))
    if not parts:
        raise S3Error("MalformedXML", "no parts")
    if [number for number, _ in parts] != sorted({number for number, _ in parts}):
        raise S3Error("InvalidPartOrder", "parts must be in ascending order, each once")
    return parts


def parse_delete(body: bytes) -> tuple[list[str], bool]:
    """The keys of a Delete, and whether only errors are to be told. Raises S3Error."""
    keys = [child.get("Key", "") for child in _children(body, "Delete", "Object")]
    quiet = any(_local(node.tag) == "Quiet" and node.text == "true" for node in _parse(body, "Delete"))
    if not keys or len(keys) > 1000:
        raise S3Error("MalformedXML", f"{len(keys)} keys, want 1 to 1000")
    return keys, quiet


def _children(body: bytes, root: str, name: str) -> Iterable[dict[str, str]]:
    for node in _parse(body, root):
        if _local(node.tag) == name:
            yield {_local(child.tag): child.text or "" for child in node}


def _parse(body: bytes, root: str) -> ElementTree.Element:
    if b"<!" in body:  # document types declare entities, which S3 has no use for and attackers do
        raise S3Error("MalformedXML", "declarations are not taken")
    try:
        tree = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError) as exc:
        raise S3Error("MalformedXML", f"not XML: {exc}") from None
    if _local(tree.tag) != root:
        raise S3Error("MalformedXML", f"want {root}, got {_local(tree.tag)[:40]}")
    return tree


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
