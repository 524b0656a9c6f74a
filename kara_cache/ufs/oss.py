"""Alibaba Cloud OSS, with the vendor's `oss2` for signatures and XML and urllib3 for the bytes."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import msgspec
import oss2

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs.lines import Answer
from kara_cache.ufs.object_api import (
    BodyStream,
    ObjectBody,
    ObjectFacts,
    ObjectPage,
    PartFacts,
    PartPage,
    PooledStream,
    UploadFacts,
    UploadPage,
)
from kara_cache.ufs.object_store import ObjectStore
from kara_cache.ufs.options import parse_options
from kara_cache.ufs.oss_session import OssSession
from kara_cache.ufs.oss_signature import ReadSigner
from kara_cache.ufs.path import check_path
from kara_cache.ufs.per_process import PerProcess
from kara_cache.ufs.resumable import UploadGone
from kara_cache.ufs.retry import RetryRule, TryAgain

_REGION = re.compile(r"(?:^|[.-])oss-([a-z]{2}-[a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com(?::\d+)?$")
_TRANSIENT_STATUSES = frozenset((408, 429, 500, 502, 503, 504))
_TRANSIENT_CODES = frozenset(
    ("RequestTimeout", "InvalidDigest")
)  # 400: body too slow, body garbled on its way
_Answer = TypeVar("_Answer")


class OssOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    access_key_id: str = ""  # without both: anonymous, for public buckets
    access_key_secret: str = ""
    app_key: str = ""  # the same two by the names of kara-storage
    app_secret: str = ""
    security_token: str = ""  # of temporary credentials (STS)
    endpoint: str = ""  # host[:port] or a URL; then the store is oss://bucket/prefix
    region: str = ""  # e.g. cn-hangzhou; what V4 signs; read from endpoints like oss-cn-hangzhou...
    signature: str = "v4"  # or v1, for gateways that know no other
    use_ssl: bool | None = None  # None: unless the endpoint option says http://
    path_style: bool = False  # host/bucket/key; always so where the endpoint is an IP or localhost
    ca_file: str = ""  # PEM; "": those of the system
    connect_timeout_s: float = 5.0  # oss2 has 60: too long to find out that a host is gone
    read_timeout_s: float = 30.0  # of silence
    timeout_s: float = 120.0  # of a whole call with its retries
    retries: int = 4
    max_connections: int = 64  # kept open for reuse; more threads may open more for the moment

    def __repr__(self) -> str:
        return f"OssOptions(endpoint={self.endpoint!r}, region={self.region!r}, signature={self.signature!r})"


class OssStore(ObjectStore):
    """`oss://endpoint/bucket/prefix`, or `oss://bucket/prefix` with the option `endpoint`.

    Appending works where the object was made by appending (OSS calls it an Appendable Object) or is
    not there yet; what is appended stays in memory until commit.
    """

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any]) -> OssStore:
        """Sends nothing. The URL is taken literally, not percent-decoded.

        Raises:
            ConfigError: a wrong URL or option, half a key, V4 without a region.
        """
        scheme, _, rest = url.partition("://")
        if scheme.lower() != "oss" or "@" in rest.partition("/")[0]:
            raise ConfigError("store oss://...: want oss://endpoint/bucket/prefix, and keys in the options")
        parsed = parse_options(options, OssOptions, url=url)
        endpoint = parsed.endpoint
        if not endpoint:
            endpoint, _, rest = rest.partition("/")
        bucket, _, prefix = rest.partition("/")
        try:
            prefix = check_path(prefix.rstrip("/"))
        except ValueError as error:
            raise ConfigError(f"store {url}: {error}") from error
        rule = RetryRule(retries=parsed.retries, timeout_s=parsed.timeout_s)
        return cls(OssApi(_endpoint_url(endpoint, parsed.use_ssl), bucket, parsed), prefix, rule)


class OssApi:
    """An `ObjectApi` over one bucket of OSS."""

    def __init__(self, endpoint: str, bucket: str, options: OssOptions) -> None:
        """`endpoint` is http[s]://host[:port]."""
        host = urlsplit(endpoint).netloc
        self.url = f"oss://{host}/{bucket}"
        if not oss2.utils.is_valid_endpoint(endpoint):
            raise ConfigError(f"store {self.url}: endpoint {endpoint!r}, want host or host:port")
        if not oss2.utils.is_valid_bucket_name(bucket):
            raise ConfigError(f"store {self.url}: bucket {bucket!r}, want 3-63 of a-z, 0-9 and -")
        if options.ca_file and not os.path.isfile(options.ca_file):
            raise ConfigError(f"store {self.url}: ca_file {options.ca_file!r} is not a file")
        auth = _auth(options, self.url)
        region = options.region or _region_of(host)
        if not region and options.signature == "v4" and not isinstance(auth, oss2.AnonymousAuth):
            raise ConfigError(f"store {self.url}: V4 signatures need the option region, e.g. cn-hangzhou")

        def connect() -> oss2.Bucket:
            return oss2.Bucket(
                auth,
                endpoint,
                bucket,
                session=OssSession(
                    endpoint,
                    options,
                    broken=oss2.exceptions.RequestError,
                    refused=oss2.exceptions.make_exception,
                ),
                enable_crc=False,  # of a range it can be compared with nothing, and costs as much as the read
                region=region or None,
                is_path_style=options.path_style,
            )

        # which of the three styles of addresses it is, oss2 alone knows
        self._base = urlsplit(oss2.api._UrlMaker(endpoint, False, options.path_style)(bucket, ""))
        self._signer = ReadSigner(
            bucket,
            key_id=(options.access_key_id or options.app_key).strip(),
            secret=(options.access_key_secret or options.app_secret).strip(),
            token=options.security_token,
            region=region,
            version=options.signature,
        )
        self._buckets = PerProcess(connect, lambda connected: connected.session.close())

    def head(self, key: str) -> ObjectFacts:
        def attempt(bucket: oss2.Bucket) -> ObjectFacts:
            if bucket.session.is_direct:
                answer = self._ask(bucket, "HEAD", key)
                told = answer.headers
                mtime = parsedate_to_datetime(told.get("Last-Modified")).timestamp()
                return ObjectFacts(key, int(told.get("Content-Length")), told.get("ETag").strip('"'), mtime)
            found = bucket.head_object(key)
            return ObjectFacts(key, found.content_length, found.etag, float(found.last_modified))

        return self._attempt(key, attempt)

    def get(self, key: str, start: int, stop: int, *, etag: str | None) -> ObjectBody | None:
        def attempt(bucket: oss2.Bucket) -> ObjectBody | None:
            try:
                return self._get(bucket, key, start, stop, etag)
            except oss2.exceptions.ServerError as error:
                if error.status == 416:
                    return None
                raise

        return self._attempt(key, attempt)

    def _get(self, bucket: oss2.Bucket, key: str, start: int, stop: int, etag: str | None) -> ObjectBody:
        # If-Match is bare, as the vendor's own resumable download sends it
        if bucket.session.is_direct:
            more = [f"Range: bytes={start}-{stop - 1}"] + ([] if etag is None else [f"If-Match: {etag}"])
            answer = self._ask(bucket, "GET", key, *more)
            headers, status = answer.headers, answer.status
            stream: BodyStream = answer
        else:
            wanted = {"x-oss-range-behavior": "standard", **({} if etag is None else {"If-Match": etag})}
            found = bucket.get_object(key, byte_range=(start, stop - 1), headers=wanted)
            headers, status = found.headers, found.status
            stream = PooledStream(found.resp.response)
        return ObjectBody(
            stream,
            status=status,
            etag=headers.get("ETag", ""),
            content_length=headers.get("Content-Length", ""),
            content_range=headers.get("Content-Range", ""),
        )

    def _ask(self, bucket: oss2.Bucket, method: str, key: str, *more: str) -> Answer:
        target = self._base.path + quote(key.encode("utf-8", "surrogateescape"), safe="")
        head = (*more, *self._signer.headers(method, key))
        answer: Answer = bucket.session.ask(method, self._base.netloc, target, head)
        return answer

    def page(self, prefix: str, *, delimiter: str, token: str, limit: int) -> ObjectPage:
        def attempt(bucket: oss2.Bucket) -> ObjectPage:
            found = bucket.list_objects_v2(
                prefix, delimiter=delimiter, continuation_token=token, max_keys=limit
            )
            objects = [ObjectFacts(o.key, o.size, o.etag, float(o.last_modified)) for o in found.object_list]
            return ObjectPage(objects, found.prefix_list, found.next_continuation_token or "")

        return self._attempt(prefix, attempt)

    def put(self, key: str, data: bytes | bytearray | memoryview) -> str:
        headers = _digest(data)
        return self._attempt(key, lambda bucket: _etag(bucket.put_object(key, data, headers=headers)))

    def delete(self, key: str) -> None:
        self._attempt(key, lambda bucket: bucket.delete_object(key))

    def begin_upload(self, key: str) -> str:
        return self._attempt(key, lambda bucket: str(bucket.init_multipart_upload(key).upload_id))

    def put_part(self, key: str, upload: str, number: int, data: bytes | bytearray) -> str:
        headers = _digest(data)
        return self._attempt(
            key, lambda bucket: _etag(bucket.upload_part(key, upload, number, data, headers=headers))
        )

    def complete_upload(self, key: str, upload: str, etags: Sequence[str]) -> str:
        parts = [oss2.models.PartInfo(number, etag) for number, etag in enumerate(etags, start=1)]
        return self._attempt(key, lambda bucket: _etag(bucket.complete_multipart_upload(key, upload, parts)))

    def abort_upload(self, key: str, upload: str) -> None:
        def attempt(bucket: oss2.Bucket) -> None:
            try:
                bucket.abort_multipart_upload(key, upload)
            except oss2.exceptions.NoSuchUpload:
                return  # the answer to an earlier attempt was lost, or it was completed after all

        self._attempt(key, attempt)

    def uploads(self, prefix: str, *, marker: tuple[str, str] | None) -> UploadPage:
        key_marker, id_marker = marker or ("", "")

        def attempt(bucket: oss2.Bucket) -> UploadPage:
            found = bucket.list_multipart_uploads(
                prefix, key_marker=key_marker, upload_id_marker=id_marker, max_uploads=1000
            )
            return UploadPage(
                [UploadFacts(u.key, u.upload_id, float(u.initiation_date)) for u in found.upload_list],
                (found.next_key_marker, found.next_upload_id_marker) if found.is_truncated else None,
            )

        return self._attempt(prefix, attempt)

    def parts(self, key: str, upload: str, *, marker: int) -> PartPage:
        def attempt(bucket: oss2.Bucket) -> PartPage:
            found = bucket.list_parts(key, upload, marker=str(marker), max_parts=1000)
            return PartPage(
                [PartFacts(part.part_number, part.size, part.etag) for part in found.parts],
                int(found.next_marker) if found.is_truncated else 0,
            )

        return self._attempt(key, attempt)

    def append_position(self, key: str) -> int:
        def attempt(bucket: oss2.Bucket) -> int:
            try:
                found = bucket.head_object(key)
            except oss2.exceptions.NotFound:
                return 0
            if found.object_type != "Appendable":
                kind = found.object_type
                raise io.UnsupportedOperation(f"{self.url}/{key}: is {kind}, only Appendable objects grow")
            return int(found.content_length)

        return self._attempt(key, attempt)

    def append(self, key: str, position: int, data: bytes | bytearray) -> str:
        headers = _digest(data)
        return self._attempt(
            key, lambda bucket: _etag(bucket.append_object(key, position, data, headers=headers))
        )

    def close(self) -> None:
        self._buckets.close()

    def _attempt(self, key: str, call: Callable[[oss2.Bucket], _Answer]) -> _Answer:
        where = f"{self.url}/{key}"
        try:
            return call(self._buckets.get())
        except oss2.exceptions.RequestError as error:
            cause, text = error.exception, f"{where}: {type(error.exception).__name__}: {error.exception}"
            raise (UnderStoreError(text) if _is_distrust(cause) else TryAgain(text)) from cause
        except oss2.exceptions.OssError as error:
            refused = _translated(error, where)
        except (ElementTree.ParseError, RuntimeError, ValueError) as error:  # oss2 on XML it did not expect
            if isinstance(error, io.UnsupportedOperation):
                raise
            raise TryAgain(f"{where}: an answer that cannot be read: {error}") from error
        # Out here without the cause: its text quotes the signed headers, a security token among them.
        raise refused


def _endpoint_url(endpoint: str, use_ssl: bool | None) -> str:
    scheme, separator, host = endpoint.rstrip("/").rpartition("://")
    if not separator:
        scheme = "https"
    if use_ssl is not None:
        scheme = "https" if use_ssl else "http"
    return f"{scheme}://{host}"


def _region_of(host: str) -> str:
    """`cn-hangzhou` of oss-cn-hangzhou[-internal].aliyuncs.com; "" of other names."""
    found = _REGION.search(host)
    return found[1] if found else ""


def _auth(options: OssOptions, url: str) -> Any:
    """One of oss2's authentications; they have no common type."""
    key_id = options.access_key_id or options.app_key
    secret = options.access_key_secret or options.app_secret
    if options.signature not in ("v1", "v4"):
        raise ConfigError(f"store {url}: signature {options.signature!r}, want v1 or v4")
    if bool(key_id) != bool(secret):
        given, missing = ("id", "secret") if key_id else ("secret", "id")
        raise ConfigError(f"store {url}: access_key_{given} without access_key_{missing}")
    if not key_id:
        return oss2.AnonymousAuth()
    if options.security_token:
        return oss2.StsAuth(key_id, secret, options.security_token, auth_version=options.signature)
    return oss2.make_auth(key_id, secret, options.signature)


def _digest(data: bytes | bytearray | memoryview) -> dict[str, str]:
    """The store refuses what arrives differently; its CRC64 needs a C compiler on this side."""
    return {"Content-MD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}


def _is_distrust(error: Exception) -> bool:
    """A certificate that is not trusted now will not be in a second."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in (error, *error.args))


def _etag(result: Any) -> str:
    return result.etag or ""


def _translated(error: oss2.exceptions.OssError, where: str) -> Exception:
    text = f"{error.code or error.status}: {error.message or 'no message'} (request {error.request_id})"
    if error.status in _TRANSIENT_STATUSES or error.code in _TRANSIENT_CODES:
        wait = error.headers.get("Retry-After", "")
        return TryAgain(f"{where}: {text}", retry_after_s=float(wait) if wait.isdigit() else None)
    if error.code == "NoSuchUpload":
        return UploadGone(f"{where}: {text}")
    if error.code == "ObjectNotAppendable":
        return io.UnsupportedOperation(f"{where}: {text}")
    if error.status == 404:
        return FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}: {text}", where)
    if error.status == 403:
        return PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)}: {text}", where)
    if error.status == 412 or error.code == "PositionNotEqualToLength":
        return StaleVersion(f"{where}: {text}")
    return UnderStoreError(f"{where}: {text}")
