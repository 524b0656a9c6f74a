"""Checks of OSS request signatures, V1 and V4, by computing them again from what arrived.

V1: base64(HMAC-SHA1(secret, string to sign)), the query only where it names a subresource.
V4: hex(HMAC-SHA256(derived key, string to sign)), the whole query and the scope
    `date/region/oss/aliyun_v4_request`.
Source: "Include signatures in the Authorization header" and "Include a V4 signature" of the OSS
developer reference.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import strptime
from urllib.parse import quote

MAX_SKEW_S = 900  # OSS refuses a date more than 15 minutes away (RequestTimeTooSkewed)

# What V1 signs of a query: subresources and overrides of the answer, as the developer reference lists them.
_V1_SUBRESOURCES = """
    acl append bucketInfo comp continuation-token cors delete encryption endTime lifecycle live location
    logging objectMeta partNumber policy position referer response-cache-control
    response-content-disposition response-content-encoding response-content-language response-content-type
    response-expires restore security-token sequential startTime stat status symlink tagging uploadId uploads
    versionId versioning versions vod website x-oss-process x-oss-request-payer x-oss-traffic-limit
"""
_V1_SIGNED_PARAMETERS = frozenset(_V1_SUBRESOURCES.split())
_V4_ALWAYS_SIGNED = frozenset({"content-type", "content-md5"})


@dataclass(frozen=True, slots=True)
class OssCredentials:
    key_id: str
    key_secret: str = field(repr=False)
    security_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a signature covers; header names in lower case, parameters and key decoded."""

    method: str
    bucket: str
    key: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]


class SignatureRefused(Exception):
    """With the code and the text that OSS would answer (403)."""

    def __init__(self, code: str, message: str, string_to_sign: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.string_to_sign = string_to_sign


def check_signature(request: SignedRequest, credentials: OssCredentials, now_s: float, region: str) -> None:
    """Returns if the request carries a valid, fresh V1 or V4 signature; raises SignatureRefused if not."""
    given = request.headers.get("authorization", "")
    if given.startswith("OSS4-HMAC-SHA256 "):
        _check_v4(request, given, credentials, now_s, region)
    elif given.startswith("OSS "):
        _check_v1(request, given, credentials, now_s)
    else:
        raise SignatureRefused("AccessDenied", "the request is not signed and the bucket is private")
    if credentials.security_token != request.headers.get("x-oss-security-token"):
        raise SignatureRefused("InvalidSecurityToken", "the security token is missing or not the issued one")


def _check_v1(request: SignedRequest, given: str, credentials: OssCredentials, now_s: float) -> None:
    key_id, _, signature = given.removeprefix("OSS ").partition(":")
    _check_key_id(key_id, credentials)
    date = request.headers.get("x-oss-date") or request.headers.get("date", "")
    _check_skew(_http_time(date), now_s)
    string_to_sign = "\n".join(
        [
            request.method,
            request.headers.get("content-md5", ""),
            request.headers.get("content-type", ""),
            date,
            _oss_headers(request) + _v1_resource(request),
        ]
    )
    digest = hmac.digest(credentials.key_secret.encode(), string_to_sign.encode(), "sha1")
    _compare(signature, base64.b64encode(digest).decode(), string_to_sign)


def _v1_resource(request: SignedRequest) -> str:
    resource = f"/{request.bucket}/{request.key}" if request.bucket else "/"
    signed = sorted((k, v) for k, v in request.parameters.items() if k in _V1_SIGNED_PARAMETERS)
    return resource + ("?" + "&".join(_parameter(k, v) for k, v in signed) if signed else "")


def _oss_headers(request: SignedRequest) -> str:
    return "".join(f"{k}:{v}\n" for k, v in sorted(request.headers.items()) if k.startswith("x-oss-"))


def _check_v4(
    request: SignedRequest, given: str, credentials: OssCredentials, now_s: float, region: str
) -> None:
    fields = dict(part.strip().partition("=")[::2] for part in given.split(" ", 1)[1].split(","))
    key_id, _, scope = fields.get("Credential", "").partition("/")
    _check_key_id(key_id, credentials)
    date = request.headers.get("x-oss-date", "")
    _check_skew(_iso_time(date), now_s)
    want_scope = f"{date[:8]}/{region}/oss/aliyun_v4_request"
    if scope != want_scope:
        raise SignatureRefused("SignatureDoesNotMatch", f"credential scope {scope!r} is not {want_scope!r}")
    additional = fields.get("AdditionalHeaders", "")
    canonical = _v4_canonical_request(request, additional)
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    string_to_sign = f"OSS4-HMAC-SHA256\n{date}\n{scope}\n{hashed}"
    signature = hmac.new(
        _v4_signing_key(credentials.key_secret, scope), string_to_sign.encode(), "sha256"
    ).hexdigest()
    _compare(fields.get("Signature", ""), signature, f"{string_to_sign}\n---\n{canonical}")


def _v4_canonical_request(request: SignedRequest, additional: str) -> str:
    signed_names = _V4_ALWAYS_SIGNED.union(additional.split(";"))
    headers = "".join(
        f"{k}:{v}\n"
        for k, v in sorted(request.headers.items())
        if k.startswith("x-oss-") or k in signed_names
    )
    query = "&".join(
        _parameter(k, v)
        for k, v in sorted((quote(k, safe="~"), quote(v, safe="~")) for k, v in request.parameters.items())
    )
    path = f"/{request.bucket}/{request.key}" if request.bucket else "/"
    payload = request.headers.get("x-oss-content-sha256", "UNSIGNED-PAYLOAD")
    return "\n".join([request.method, quote(path, safe="/~"), query, headers, additional, payload])


def _v4_signing_key(secret: str, scope: str) -> bytes:
    key = f"aliyun_v4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _parameter(name: str, value: str) -> str:
    return f"{name}={value}" if value else name


def _check_key_id(key_id: str, credentials: OssCredentials) -> None:
    if key_id != credentials.key_id:
        raise SignatureRefused("InvalidAccessKeyId", "the access key id does not exist in our records")


def _compare(given: str, computed: str, string_to_sign: str) -> None:
    if not hmac.compare_digest(given.encode(), computed.encode()):
        raise SignatureRefused(
            "SignatureDoesNotMatch",
            "the request signature we calculated does not match the signature you provided",
            string_to_sign,
        )


def _check_skew(sent_s: float | None, now_s: float) -> None:
    if sent_s is None:
        raise SignatureRefused("AccessDenied", "the request has no valid date")
    if abs(now_s - sent_s) > MAX_SKEW_S:
        raise SignatureRefused(
            "RequestTimeTooSkewed", f"the request is {now_s - sent_s:.0f} s old, the limit is {MAX_SKEW_S} s"
        )


def _http_time(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _iso_time(date: str) -> float | None:
    try:
        return timegm(strptime(date, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return None
