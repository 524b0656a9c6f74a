"""Errors of the data port, by S3's codes ("Error Responses" of the S3 API reference)."""

from __future__ import annotations

import asyncio
import errno

from kara_cache.errors import AccessDenied, CacheError, KaraError, StaleVersion
from kara_worker.alluxio.byte_range import RangeNotSatisfiable

_STATUS = {
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "AuthorizationQueryParametersError": 400,
    "BadDigest": 400,
    "BucketAlreadyOwnedByYou": 409,
    "EntityTooLarge": 400,
    "IncompleteBody": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidArgument": 400,
    "InvalidPart": 400,
    "InvalidPartOrder": 400,
    "InvalidPartNumber": 416,
    "InvalidRange": 416,
    "MalformedXML": 400,
    "MethodNotAllowed": 405,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "OperationAborted": 409,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "ServiceUnavailable": 503,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
    "XAmzContentSHA256Mismatch": 400,
}


class S3Error(Exception):
    """An answer other than the wished one; the message goes to the client."""

    def __init__(self, code: str, message: str, *, object_size: int | None = None) -> None:
        """`object_size` goes with InvalidRange: the AWS CRT learns from it that a file is empty."""
        super().__init__(message)
        self.code = code
        self.status = _STATUS[code]
        self.object_size = object_size


def as_s3_error(error: Exception) -> S3Error:
    """What a client is told; nothing of an error that was not foreseen but its class."""
    if isinstance(error, S3Error):
        return error
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, RangeNotSatisfiable):
        return S3Error("InvalidRange", text, object_size=error.size)
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return S3Error("NoSuchKey", "the specified key does not exist")
    if isinstance(error, (AccessDenied, PermissionError)):
        return S3Error("AccessDenied", text)
    if isinstance(error, FileExistsError) or (isinstance(error, OSError) and error.errno == errno.ENOTEMPTY):
        return S3Error("OperationAborted", text)
    if isinstance(error, StaleVersion):
        return S3Error("PreconditionFailed", text)
    if isinstance(error, (CacheError, TimeoutError, asyncio.TimeoutError)):
        return S3Error("SlowDown", text)
    if isinstance(error, ValueError) and not isinstance(error, KaraError):
        return S3Error("InvalidArgument", text)
    if isinstance(error, (KaraError, OSError)):
        return S3Error("ServiceUnavailable", text)
    return S3Error("InternalError", f"the worker failed: {type(error).__name__}")
