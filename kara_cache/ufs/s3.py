"""S3 and the stores that speak its language, over boto3."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import msgspec
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.ufs.object_api import (
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
from kara_cache.ufs.path import check_path
from kara_cache.ufs.per_process import PerProcess
from kara_cache.ufs.resumable import UploadGone
from kara_cache.ufs.retry import RetryRule, TryAgain

_STYLES = ("auto", "path", "virtual")
_TRANSIENT_STATUSES = frozenset((408, 429, 500, 502, 503, 504))
_TRANSIENT_CODES = frozenset(  # with 400: the body came too slowly, cut off or garbled
    ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "Throttling", "SlowDown")
)
_REFUSAL_CODES = frozenset(("ExpiredToken", "InvalidToken", "TokenRefreshRequired"))  # with 400
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
)

_Client = Any  # boto3 makes its clients at run time, without types
_Answer = TypeVar("_Answer")


class S3Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    access_key_id: str = ""  # without both: boto3's chain (environment, profile, instance role)
    secret_access_key: str = ""
    session_token: str = ""
    anonymous: bool = False  # do not sign, for public buckets
    endpoint_url: str = ""  # of a store other than AWS
    region: str = ""  # "": boto3's configuration, or us-east-1
    addressing_style: str = "auto"  # or path (most stores other than AWS), or virtual
    ca_file: str = ""  # PEM; "": those that botocore brings
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0  # of silence
    timeout_s: float = 120.0  # of a whole call with its retries
    retries: int = 4
    max_connections: int = 64  # kept open for reuse; more threads may open more for the moment

    def __repr__(self) -> str:
        return f"S3Options(endpoint_url={self.endpoint_url!r}, region={self.region!r})"


class S3Store(ObjectStore):
    """`s3://bucket/prefix`. S3 cannot append.

    Whether the store knows If-Match or not, an answer with another ETag is refused.
    """

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any]) -> S3Store:
        """Sends nothing. The URL is taken literally, not percent-decoded.

        Raises:
            ConfigError: a wrong URL or option, or half a key.
        """
        bucket, _, prefix = url.partition("://")[2].partition("/")
        if not bucket or "@" in bucket:
            raise ConfigError("store s3://...: want s3://bucket/prefix, and keys in the options")
        parsed = parse_options(options, S3Options, url=url)
        try:
            prefix = check_path(prefix.rstrip("/"))
        except ValueError as error:
            raise ConfigError(f"store {url}: {error}") from error
        rule = RetryRule(retries=parsed.retries, timeout_s=parsed.timeout_s)
        return cls(S3Api(bucket, parsed), prefix, rule)


class S3Api:
    """An `ObjectApi` over one bucket.

    botocore's own retries are off: they know neither a deadline nor Retry-After, and the rule and the
    budget of `retry.py` are the same for every store.
    """

    def __init__(self, bucket: str, options: S3Options) -> None:
        self.url = f"s3://{bucket}"
        _check(options, self.url)
        self._bucket = bucket
        self._clients = PerProcess(lambda: _connect(options), lambda client: client.close())

    def head(self, key: str) -> ObjectFacts:
        found = self._attempt(key, lambda client: client.head_object(Bucket=self._bucket, Key=key))
        return _facts(key, found["ContentLength"], found)

    def get(self, key: str, start: int, stop: int, *, etag: str | None) -> ObjectBody | None:
        wanted = {"Bucket": self._bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}"}
        if etag is not None:
            wanted["IfMatch"] = f'"{etag}"'

        def attempt(client: _Client) -> ObjectBody | None:
            try:
                found = client.get_object(**wanted)
            except ClientError as error:
                if _status(error) == 416:
                    return None
                raise
            headers = found["ResponseMetadata"]["HTTPHeaders"]
            return ObjectBody(
                PooledStream(found["Body"]._raw_stream),
                status=found["ResponseMetadata"]["HTTPStatusCode"],
                etag=headers.get("etag", ""),
                content_length=headers.get("content-length", ""),
                content_range=headers.get("content-range", ""),
            )

        return self._attempt(key, attempt)

    def page(self, prefix: str, *, delimiter: str, token: str, limit: int) -> ObjectPage:
        wanted = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": delimiter, "MaxKeys": limit}
        if token:
            wanted["ContinuationToken"] = token
        found = self._attempt(prefix, lambda client: client.list_objects_v2(**wanted))
        return ObjectPage(
            [_facts(entry["Key"], entry["Size"], entry) for entry in found.get("Contents", ())],
            [entry["Prefix"] for entry in found.get("CommonPrefixes", ())],
            found.get("NextContinuationToken", "") if found["IsTruncated"] else "",
        )

    def put(self, key: str, data: bytes | bytearray | memoryview) -> str:
        body = bytes(data) if isinstance(data, memoryview) else data  # botocore takes no views
        wanted = {"Bucket": self._bucket, "Key": key, "Body": body, "ContentMD5": _digest(body)}
        return _etag(self._attempt(key, lambda client: client.put_object(**wanted)))

    def delete(self, key: str) -> None:
        self._attempt(key, lambda client: client.delete_object(Bucket=self._bucket, Key=key))

    def begin_upload(self, key: str) -> str:
        wanted = {"Bucket": self._bucket, "Key": key}
        return str(self._attempt(key, lambda client: client.create_multipart_upload(**wanted))["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: bytes | bytearray) -> str:
        wanted = {
            "Bucket": self._bucket,
            "Key": key,
            "UploadId": upload,
            "PartNumber": number,
            "Body": data,
            "ContentMD5": _digest(data),
        }
        return _etag(self._attempt(key, lambda client: client.upload_part(**wanted)))

    def complete_upload(self, key: str, upload: str, etags: Sequence[str]) -> str:
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, start=1)]
        wanted = {"Bucket": self._bucket, "Key": key, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
        return _etag(self._attempt(key, lambda client: client.complete_multipart_upload(**wanted)))

    def abort_upload(self, key: str, upload: str) -> None:
        def attempt(client: _Client) -> None:
            try:
                client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
            except ClientError as error:
                if _status(error) != 404:  # else an earlier attempt got there and its answer was lost
                    raise

        self._attempt(key, attempt)

    def uploads(self, prefix: str, *, marker: tuple[str, str] | None) -> UploadPage:
        wanted = {"Bucket": self._bucket, "Prefix": prefix}
        if marker is not None:
            wanted["KeyMarker"], wanted["UploadIdMarker"] = marker
        found = self._attempt(prefix, lambda client: client.list_multipart_uploads(**wanted))
        return UploadPage(
            [
                UploadFacts(entry["Key"], entry["UploadId"], entry["Initiated"].timestamp())
                for entry in found.get("Uploads", ())
            ],
            (found["NextKeyMarker"], found["NextUploadIdMarker"]) if found["IsTruncated"] else None,
        )

    def parts(self, key: str, upload: str, *, marker: int) -> PartPage:
        wanted = {"Bucket": self._bucket, "Key": key, "UploadId": upload, "PartNumberMarker": marker}
        found = self._attempt(key, lambda client: client.list_parts(**wanted))
        return PartPage(
            [PartFacts(entry["PartNumber"], entry["Size"], _etag(entry)) for entry in found.get("Parts", ())],
            int(found["NextPartNumberMarker"]) if found["IsTruncated"] else 0,
        )

    def append_position(self, key: str) -> int:
        raise io.UnsupportedOperation(f"{self.url}/{key}: S3 cannot append")

    def append(self, key: str, position: int, data: bytes | bytearray) -> str:
        raise io.UnsupportedOperation(f"{self.url}/{key}: S3 cannot append")

    def close(self) -> None:
        self._clients.close()

    def _attempt(self, key: str, call: Callable[[_Client], _Answer]) -> _Answer:
        where = f"{self.url}/{key}"
        try:
            return call(self._clients.get())
        except ClientError as error:
            raise _translated(error, where) from error
        except _NO_CREDENTIALS as error:
            raise PermissionError(errno.EACCES, f"no usable credentials: {error}", where) from error
        except SSLError as error:
            raise UnderStoreError(f"{where}: {error}") from error
        except (ConnectionError, HTTPClientError, ResponseParserError) as error:
            raise TryAgain(f"{where}: {type(error).__name__}: {error}") from error
        except BotoCoreError as error:
            raise UnderStoreError(f"{where}: {type(error).__name__}: {error}") from error


def _check(options: S3Options, url: str) -> None:
    if bool(options.access_key_id) != bool(options.secret_access_key):
        raise ConfigError(f"store {url}: access_key_id and secret_access_key go together, one is missing")
    if options.anonymous and options.access_key_id:
        raise ConfigError(f"store {url}: anonymous, or with a key, not both")
    if options.addressing_style not in _STYLES:
        raise ConfigError(
            f"store {url}: addressing_style {options.addressing_style!r}, want one of {_STYLES}"
        )
    if options.ca_file and not os.path.isfile(options.ca_file):
        raise ConfigError(f"store {url}: ca_file {options.ca_file!r} is not a file")
    endpoint = urlsplit(options.endpoint_url)
    if options.endpoint_url and (endpoint.scheme not in ("http", "https") or not endpoint.hostname):
        raise ConfigError(f"store {url}: endpoint_url must be http[s]://host[:port]")
    if endpoint.username or endpoint.password:
        raise ConfigError(f"store {url}: endpoint_url has a user or password in it; use the key options")


def _connect(options: S3Options) -> _Client:
    """A client on a session of its own: boto3's default session is shared and not thread-safe."""
    more: dict[str, Any] = {"signature_version": UNSIGNED} if options.anonymous else {}
    if "request_checksum_calculation" in Config.OPTION_DEFAULTS:
        # Since botocore 1.36 the default adds trailers that many stores other than AWS cannot parse.
        more["request_checksum_calculation"] = "when_required"
        more["response_checksum_validation"] = "when_required"
    session = boto3.session.Session(
        aws_access_key_id=options.access_key_id or None,
        aws_secret_access_key=options.secret_access_key or None,
        aws_session_token=options.session_token or None,
    )
    region = options.region or session.region_name or "us-east-1"
    return session.client(
        "s3",
        region_name=region,
        endpoint_url=options.endpoint_url or None,
        verify=options.ca_file or None,
        config=Config(
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            max_pool_connections=options.max_connections,
            retries={"mode": "standard", "total_max_attempts": 1},
            s3={"addressing_style": options.addressing_style},
            **more,
        ),
    )


def _facts(key: str, size: int, found: Mapping[str, Any]) -> ObjectFacts:
    return ObjectFacts(key, size, _etag(found), float(int(found["LastModified"].timestamp())))


def _etag(found: Mapping[str, Any]) -> str:
    return str(found.get("ETag", "")).strip('"')


def _digest(data: bytes | bytearray) -> str:
    """The store refuses what arrives differently; every S3 knows Content-MD5, few the newer checksums."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translated(error: ClientError, where: str) -> Exception:
    status, told = _status(error), error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    code = told.get("Code") or str(status)
    text = f"{code}: {told.get('Message') or 'no message'} (request {meta.get('RequestId', '')})"
    if status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
        wait = meta.get("HTTPHeaders", {}).get("retry-after", "")
        return TryAgain(f"{where}: {text}", retry_after_s=float(wait) if wait.isdigit() else None)
    if code == "NoSuchUpload":
        return UploadGone(f"{where}: {text}")
    if status == 404:
        return FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}: {text}", where)
    if status == 403 or code in _REFUSAL_CODES:
        return PermissionError(errno.EACCES, f"{os.strerror(errno.EACCES)}: {text}", where)
    if status == 412:
        return StaleVersion(f"{where}: {text}")
    return UnderStoreError(f"{where}: {text}")
