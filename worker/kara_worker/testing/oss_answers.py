"""What OSS answers to one request, as a function of the objects: no sockets, no threads.

Behaviour as in the OSS API reference; where it differs from S3 a comment says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from time import gmtime, strftime
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from kara_worker.testing.oss_faults import Fault
from kara_worker.testing.oss_objects import ObjectShelf, OssRefused, StoredObject
from kara_worker.testing.oss_signature import SignedRequest

_RANGE = re.compile(r"bytes=(\d*)-(\d*)(?:,.*)?\Z")  # of several ranges OSS serves the first
_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""


def answer_request(shelf: ObjectShelf, request: SignedRequest, body: bytearray, fault: Fault) -> Answer:
    """Carries the request out. Raises OssRefused for what the client must be told."""
    _check_digest(request.headers, body)
    wanted = request.parameters
    if not request.bucket:
        return _list_buckets(shelf, request)
    if not request.key:
        return _answer_bucket(shelf, request, body)
    match request.method:
        case "GET" if "uploadId" in wanted:
            return _list_parts(shelf, request)
        case "GET" | "HEAD":
            return _read_object(shelf, request, fault)
        case "PUT" if "uploadId" in wanted:
            number = int(wanted["partNumber"])
            return _written(shelf.put_part(wanted["uploadId"], request.key, number, body))
        case "PUT" if "x-oss-copy-source" in request.headers:
            return _copy_object(shelf, request)
        case "PUT":
            kept = _kept_headers(request.headers)
            return _written(shelf.put(request.bucket, request.key, body, headers=kept))
        case "POST" if "append" in wanted:
            return _append(shelf, request, body)
        case "POST" if "uploads" in wanted:
            return _begin_upload(shelf, request)
        case "POST" if "uploadId" in wanted:
            return _complete_upload(shelf, request, body)
        case "DELETE" if "uploadId" in wanted:
            shelf.abort_upload(wanted["uploadId"], request.key)
            return Answer(204)
        case "DELETE":
            shelf.delete(request.bucket, request.key)
            return Answer(204)
    raise OssRefused(405, "MethodNotAllowed", f"{request.method} on an object")


def _answer_bucket(shelf: ObjectShelf, request: SignedRequest, body: bytearray) -> Answer:
    match request.method:
        case "GET" if "uploads" in request.parameters:
            return _list_uploads(shelf, request)
        case "GET":
            return _list_objects(shelf, request)
        case "PUT":
            public = request.headers.get("x-oss-acl", "").startswith("public-read")
            shelf.create_bucket(request.bucket, public_read=public)
            return Answer(200)
        case "POST" if "delete" in request.parameters:
            return _delete_objects(shelf, request, body)
        case "DELETE":
            shelf.delete_bucket(request.bucket)
            return Answer(204)
    raise OssRefused(405, "MethodNotAllowed", f"{request.method} on a bucket")


def refusal(refused: OssRefused, request_id: str, string_to_sign: str = "") -> Answer:
    """The error document; 304 has none."""
    headers = {"x-oss-request-id": request_id, **refused.headers}
    if refused.status == 304:
        return Answer(304, headers)
    fields = {"Code": refused.code, "Message": str(refused), "RequestId": request_id}
    if string_to_sign:
        fields["StringToSign"] = string_to_sign
    document = _xml("Error", *(_tag(name, value) for name, value in fields.items()))
    return Answer(refused.status, {"Content-Type": "application/xml", **headers}, document)


def _read_object(shelf: ObjectShelf, request: SignedRequest, fault: Fault) -> Answer:
    stored = shelf.get(request.bucket, request.key)
    _check_conditions(request.headers, stored)
    headers = _object_headers(stored)
    asked = "" if fault.ignore_range else request.headers.get("range", "")
    standard = request.headers.get("x-oss-range-behavior") == "standard"
    span = resolve_range(asked, len(stored.data), standard=standard)
    if span is None:
        return Answer(200, headers, stored.data)
    start, stop = span[0] + fault.shift, min(span[1] + fault.shift, len(stored.data))
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(stored.data)}"
    return Answer(206, headers, stored.data[start:stop])


def resolve_range(header: str, size: int, *, standard: bool) -> tuple[int, int] | None:
    """Start and stop of what is served, or None for the whole object.

    Unlike HTTP, OSS serves the whole object with 200 when either end lies outside of it, unless the
    client asked for standard behaviour: then the end is clipped and a start outside is a 416.
    """
    matched = _RANGE.match(header)
    if matched is None or matched[1] == matched[2] == "":
        return None
    if matched[1] == "":
        length = int(matched[2])
        if not standard and length > size:
            return None
        start, stop = max(0, size - length), size
    else:
        start = int(matched[1])
        stop = int(matched[2]) + 1 if matched[2] else size
        if start >= stop and matched[2]:
            return None
        if not standard and stop > size:
            return None
    if start >= min(stop, size):
        if not standard:
            return None
        raise OssRefused(
            416,
            "InvalidRange",
            "The requested range cannot be satisfied",
            {"Content-Range": f"bytes */{size}"},
        )
    return start, min(stop, size)


def _check_conditions(headers: Mapping[str, str], stored: StoredObject) -> None:
    if "if-match" in headers and headers["if-match"].strip('"') != stored.etag:
        raise OssRefused(412, "PreconditionFailed", "At least one of the pre-conditions did not hold.")
    if headers.get("if-none-match", "").strip('"') == stored.etag:
        raise OssRefused(304, "NotModified")
    since = _date(headers.get("if-modified-since", ""))
    if since is not None and stored.modified_s <= since:
        raise OssRefused(304, "NotModified")
    until = _date(headers.get("if-unmodified-since", ""))
    if until is not None and stored.modified_s > until:
        raise OssRefused(412, "PreconditionFailed", "At least one of the pre-conditions did not hold.")


def _copy_object(shelf: ObjectShelf, request: SignedRequest) -> Answer:
    bucket, _, key = unquote(request.headers["x-oss-copy-source"]).lstrip("/").partition("/")
    source = shelf.get(bucket, key)
    made = shelf.put(request.bucket, request.key, source.data, headers=source.headers)
    document = _xml(
        "CopyObjectResult", _tag("LastModified", _iso(made.modified_s)), _tag("ETag", f'"{made.etag}"')
    )
    return Answer(200, {"Content-Type": "application/xml"}, document)


def _append(shelf: ObjectShelf, request: SignedRequest, body: bytearray) -> Answer:
    position = int(request.parameters["position"])
    kept = _kept_headers(request.headers)
    made = shelf.append(request.bucket, request.key, position, body, kept)
    answer = _written(made)
    answer.headers["x-oss-next-append-position"] = str(len(made.data))
    return answer


def _begin_upload(shelf: ObjectShelf, request: SignedRequest) -> Answer:
    upload_id = shelf.begin_upload(request.bucket, request.key, _kept_headers(request.headers))
    document = _xml(
        "InitiateMultipartUploadResult",
        _tag("Bucket", request.bucket),
        _tag("Key", request.key),
        _tag("UploadId", upload_id),
    )
    return Answer(200, {"Content-Type": "application/xml"}, document)


def _complete_upload(shelf: ObjectShelf, request: SignedRequest, body: bytearray) -> Answer:
    wanted = [
        (int(part.findtext("PartNumber", "0")), part.findtext("ETag", "").strip('"'))
        for part in _parsed(body).findall("Part")
    ]
    made = shelf.complete_upload(request.parameters["uploadId"], request.key, wanted)
    document = _xml("CompleteMultipartUploadResult", _tag("Key", request.key), _tag("ETag", f'"{made.etag}"'))
    return Answer(200, {"Content-Type": "application/xml", **_written(made).headers}, document)


def _delete_objects(shelf: ObjectShelf, request: SignedRequest, body: bytearray) -> Answer:
    document = _parsed(body)
    keys = [node.findtext("Key", "") for node in document.findall("Object")]
    for key in keys:
        shelf.delete(request.bucket, key)
    if document.findtext("Quiet") == "true":
        return Answer(200)
    encode = _name_encoding(request)
    deleted = [f"<Deleted>{_tag('Key', encode(key))}</Deleted>" for key in keys]
    document_out = _xml("DeleteResult", *_encoding_tag(request), *deleted)
    return Answer(200, {"Content-Type": "application/xml"}, document_out)


def _list_objects(shelf: ObjectShelf, request: SignedRequest) -> Answer:
    wanted, encode = request.parameters, _name_encoding(request)
    second = wanted.get("list-type") == "2"
    limit = _limit(wanted.get("max-keys", ""))
    token = wanted.get("continuation-token", "")
    after = (
        (_name_of(token) if token else wanted.get("start-after", "")) if second else wanted.get("marker", "")
    )
    page = shelf.page(request.bucket, wanted.get("prefix", ""), wanted.get("delimiter", ""), after, limit)
    tags = [
        _tag("Name", request.bucket),
        _tag("Prefix", encode(wanted.get("prefix", ""))),
        _tag("MaxKeys", str(limit)),
        _tag("Delimiter", encode(wanted.get("delimiter", ""))),
        *_encoding_tag(request),
        _tag("IsTruncated", "false" if page.next_marker is None else "true"),
    ]
    if second:
        tags.append(_tag("KeyCount", str(len(page.objects) + len(page.prefixes))))
    if page.next_marker is not None:
        following = _token_of(page.next_marker) if second else page.next_marker
        tags.append(_tag("NextContinuationToken" if second else "NextMarker", encode(following)))
    tags += [_contents(encode(key), stored) for key, stored in page.objects]
    tags += [f"<CommonPrefixes>{_tag('Prefix', encode(name))}</CommonPrefixes>" for name in page.prefixes]
    return Answer(200, {"Content-Type": "application/xml"}, _xml("ListBucketResult", *tags))


def _contents(name: str, stored: StoredObject) -> str:
    fields = {
        "Key": name,
        "LastModified": _iso(stored.modified_s),
        "ETag": f'"{stored.etag}"',
        "Type": stored.kind,
        "Size": str(len(stored.data)),
        "StorageClass": "Standard",
    }
    return f"<Contents>{''.join(_tag(tag, value) for tag, value in fields.items())}</Contents>"


def _list_parts(shelf: ObjectShelf, request: SignedRequest) -> Answer:
    upload = shelf.upload(request.parameters["uploadId"], request.key)
    after = int(request.parameters.get("part-number-marker") or 0)
    limit = _limit(request.parameters.get("max-parts", "1000"))
    numbers = sorted(number for number in upload.parts if number > after)
    shown = numbers[:limit]
    tags = [
        _tag("IsTruncated", "true" if len(numbers) > limit else "false"),
        _tag("NextPartNumberMarker", str(shown[-1] if shown else after)),
    ]
    for number in shown:
        part = upload.parts[number]
        fields = {
            "PartNumber": str(number),
            "LastModified": _iso(part.modified_s),
            "ETag": f'"{part.etag}"',
            "Size": str(len(part.data)),
        }
        tags.append(f"<Part>{''.join(_tag(name, value) for name, value in fields.items())}</Part>")
    return Answer(200, {"Content-Type": "application/xml"}, _xml("ListPartsResult", *tags))


def _list_uploads(shelf: ObjectShelf, request: SignedRequest) -> Answer:
    wanted, encode = request.parameters, _name_encoding(request)
    after = (wanted.get("key-marker", ""), wanted.get("upload-id-marker", ""))
    limit = _limit(wanted.get("max-uploads") or str(_MAX_KEYS))
    found = sorted(
        ((upload.key, upload_id), upload)
        for upload_id, upload in shelf.uploads(request.bucket).items()
        if upload.key.startswith(wanted.get("prefix", "")) and (upload.key, upload_id) > after
    )
    shown, cut = found[:limit], len(found) > limit
    key_marker, id_marker = shown[-1][0] if cut else ("", "")
    tags = [*_encoding_tag(request), _tag("IsTruncated", "true" if cut else "false")]
    tags += [_tag("NextKeyMarker", encode(key_marker)), _tag("NextUploadIdMarker", id_marker)]
    for (key, upload_id), upload in shown:
        fields = {"Key": encode(key), "UploadId": upload_id, "Initiated": _iso(upload.began_s)}
        tags.append(f"<Upload>{''.join(_tag(name, value) for name, value in fields.items())}</Upload>")
    return Answer(200, {"Content-Type": "application/xml"}, _xml("ListMultipartUploadsResult", *tags))


def _list_buckets(shelf: ObjectShelf, request: SignedRequest) -> Answer:
    if request.method != "GET":
        raise OssRefused(405, "MethodNotAllowed", f"{request.method} on the service")
    buckets = "".join(
        f"<Bucket>{_tag('Name', name)}{_tag('Location', 'oss-test')}{_tag('CreationDate', _iso(0))}</Bucket>"
        for name in shelf.bucket_names()
    )
    document = _xml("ListAllMyBucketsResult", _tag("IsTruncated", "false"), f"<Buckets>{buckets}</Buckets>")
    return Answer(200, {"Content-Type": "application/xml"}, document)


def _object_headers(stored: StoredObject) -> dict[str, str]:
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        **stored.headers,
        "ETag": f'"{stored.etag}"',
        "Last-Modified": formatdate(stored.modified_s, usegmt=True),
        "x-oss-object-type": stored.kind,
    }
    if stored.crc64 is not None:
        headers["x-oss-hash-crc64ecma"] = str(stored.crc64)
    if stored.kind == "Appendable":
        headers["x-oss-next-append-position"] = str(len(stored.data))
    return headers


def _written(stored: StoredObject) -> Answer:
    headers = {"ETag": f'"{stored.etag}"'}
    if stored.crc64 is not None:
        headers["x-oss-hash-crc64ecma"] = str(stored.crc64)
    return Answer(200, headers)


def _kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in headers.items() if name.startswith("x-oss-meta-")}
    if "content-type" in headers:
        kept["Content-Type"] = headers["content-type"]
    return kept


def _check_digest(headers: Mapping[str, str], body: bytearray) -> None:
    given = headers.get("content-md5")
    computed = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode() if given else None
    if given != computed:
        raise OssRefused(400, "InvalidDigest", "The Content-MD5 you specified is not that of the body")


def _limit(text: str) -> int:
    limit = int(text or 100)
    if not 1 <= limit <= _MAX_KEYS:
        raise OssRefused(400, "InvalidArgument", f"max-keys {limit} is not in 1..{_MAX_KEYS}")
    return limit


def _token_of(name: str) -> str:
    """Of characters that no encoding touches: clients of S3 do not decode it, those of OSS do."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _name_of(token: str) -> str:
    try:
        padded = token.encode() + b"=" * (-len(token) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise OssRefused(400, "InvalidArgument", f"no continuation token: {token}") from None


def _name_encoding(request: SignedRequest) -> Callable[[str], str]:
    return quote if request.parameters.get("encoding-type") == "url" else str


def _encoding_tag(request: SignedRequest) -> list[str]:
    return [_tag("EncodingType", "url")] if request.parameters.get("encoding-type") == "url" else []


def _parsed(body: bytearray) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(bytes(body))
    except ElementTree.ParseError as exc:
        raise OssRefused(400, "MalformedXML", str(exc)) from exc


def _xml(root: str, *children: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{"".join(children)}</{root}>'.encode()


def _tag(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


def _iso(at_s: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(at_s))


def _date(header: str) -> float | None:
    try:
        return parsedate_to_datetime(header).timestamp() if header else None
    except ValueError:
        return None
