"""Checks of AWS Signature Version 4 for S3, by computing them again from what arrived. No I/O.

    string to sign = "AWS4-HMAC-SHA256" date scope hex(SHA-256(canonical request))
    scope          = yyyymmdd/region/s3/aws4_request
    signing key    = HMAC(HMAC(HMAC(HMAC("AWS4" + secret, yyyymmdd), region), "s3"), "aws4_request")
    signature      = hex(HMAC(signing key, string to sign))

Sources: "Authenticating Requests (AWS Signature Version 4)" of the S3 API reference, with its pages on
query parameters (presigned URLs) and on chunked uploads.
"""

from __future__ import annotations

import hmac
import re
from calendar import timegm
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from time import strptime
from urllib.parse import parse_qsl, quote, unquote

from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio_config import S3Key

MAX_SKEW_S = 900  # S3 refuses a date more than 15 minutes away
MAX_PRESIGNED_S = 7 * 86400
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"
_FIELDS = re.compile(r"\s*(Credential|SignedHeaders|Signature)=([^,\s]+)\s*")


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it was sent; header names in lower case."""

    method: str
    target: str  # path and query of the request line
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Signed:
    """Who signed, and what the chunks of a streamed body are signed with."""

    key: S3Key
    date: str
    scope: str
    signature: str
    signing_key: bytes = field(repr=False)

    def chunk_signature(self, previous: str, chunk_sha256: str) -> str:
        text = "\n".join(
            (f"{_ALGORITHM}-PAYLOAD", self.date, self.scope, previous, EMPTY_SHA256, chunk_sha256)
        )
        return _hmac(self.signing_key, text).hex()

    def trailer_signature(self, previous: str, trailer: bytes) -> str:
        text = "\n".join(
            (f"{_ALGORITHM}-TRAILER", self.date, self.scope, previous, sha256(trailer).hexdigest())
        )
        return _hmac(self.signing_key, text).hex()


@dataclass(frozen=True, slots=True)
class _Claim:
    access_key: str
    scope: str  # without the access key
    signed_headers: tuple[str, ...]
    signature: str
    date: str
    payload: str


def verify(request: Incoming, keys: Sequence[S3Key], now_s: float) -> Signed:
    """Who signed this request with one of `keys`. Raises S3Error with the code that S3 gives."""
    query = parse_qsl(request.target.partition("?")[2].replace("+", "%2B"), keep_blank_values=True)
    arguments = dict(query)
    if "X-Amz-Signature" in arguments:
        claim = _presigned(arguments, now_s)
    else:
        claim = _in_header(request.headers)
        if abs(now_s - _seconds(claim.date)) > MAX_SKEW_S:
            raise S3Error("RequestTimeTooSkewed", f"date {claim.date} is too far from the server's")
    day, _, rest = claim.scope.partition("/")
    if not claim.date.startswith(day) or not rest.endswith("/s3/aws4_request"):
        raise S3Error(
            "AuthorizationHeaderMalformed",
            f"scope {claim.scope!r}: want {claim.date[:8]}/REGION/s3/aws4_request",
        )
    if "host" not in claim.signed_headers:
        raise S3Error("AccessDenied", "the host header is not signed")
    key = next((key for key in keys if key.access_key == claim.access_key), None)
    # an unknown key costs the same work as a wrong signature
    secret = key.secret_key if key is not None else "unknown"
    signing_key = _signing_key(secret, claim.scope)
    canonical = _canonical(request, query, claim)
    text = "\n".join((_ALGORITHM, claim.date, claim.scope, sha256(canonical.encode()).hexdigest()))
    wanted = _hmac(signing_key, text).hex()
    right = hmac.compare_digest(wanted.encode(), claim.signature.encode())
    if key is None:
        raise S3Error("InvalidAccessKeyId", "this access key is not known here")
    if not right:
        raise S3Error("SignatureDoesNotMatch", "the signature is not the one of this request with this key")
    return Signed(key, claim.date, claim.scope, claim.signature, signing_key)


def _in_header(headers: Mapping[str, str]) -> _Claim:
    algorithm, _, rest = headers.get("authorization", "").partition(" ")
    if algorithm != _ALGORITHM:
        raise S3Error("AccessDenied", f"signed requests only ({_ALGORITHM})")
    fields = {match[1]: match[2] for part in rest.split(",") if (match := _FIELDS.fullmatch(part))}
    payload, date = headers.get("x-amz-content-sha256", ""), headers.get("x-amz-date", "")
    if len(fields) != 3 or not payload or not date:
        raise S3Error(
            "AuthorizationHeaderMalformed",
            "Credential, SignedHeaders, Signature, x-amz-date and x-amz-content-sha256 are needed",
        )
    access_key, _, scope = fields["Credential"].partition("/")
    signed = tuple(fields["SignedHeaders"].lower().split(";"))
    return _Claim(access_key, scope, signed, fields["Signature"], date, payload)


def _presigned(arguments: Mapping[str, str], now_s: float) -> _Claim:
    try:
        access_key, _, scope = arguments["X-Amz-Credential"].partition("/")
        date, expires = arguments["X-Amz-Date"], int(arguments["X-Amz-Expires"])
        signed = tuple(arguments["X-Amz-SignedHeaders"].lower().split(";"))
    except (KeyError, ValueError):
        raise S3Error(
            "AuthorizationQueryParametersError", "a presigned URL lacks one of its parameters"
        ) from None
    if arguments.get("X-Amz-Algorithm") != _ALGORITHM or not 0 < expires <= MAX_PRESIGNED_S:
        raise S3Error(
            "AuthorizationQueryParametersError", f"want {_ALGORITHM} and at most {MAX_PRESIGNED_S} s"
        )
    began = _seconds(date)
    if now_s > began + expires:
        raise S3Error("AccessDenied", "the presigned URL has expired")
    if began > now_s + MAX_SKEW_S:
        raise S3Error("AccessDenied", "the presigned URL is not valid yet")
    payload = arguments.get("X-Amz-Content-Sha256", UNSIGNED)
    return _Claim(access_key, scope, signed, arguments["X-Amz-Signature"], date, payload)


def _canonical(request: Incoming, query: Iterable[tuple[str, str]], claim: _Claim) -> str:
    path = quote(
        unquote(request.target.partition("?")[0], errors="surrogateescape"),
        safe="/~",
        errors="surrogateescape",
    )
    pairs = sorted(
        (quote(name, safe="~"), quote(value, safe="~")) for name, value in query if name != "X-Amz-Signature"
    )
    headers = [f"{name}:{' '.join(request.headers.get(name, '').split())}\n" for name in claim.signed_headers]
    return "\n".join(
        (
            request.method,
            path or "/",
            "&".join(f"{name}={value}" for name, value in pairs),
            "".join(headers),
            ";".join(claim.signed_headers),
            claim.payload,
        )
    )


def _signing_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def _seconds(date: str) -> float:
    try:
        return timegm(strptime(date, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        raise S3Error("AuthorizationHeaderMalformed", f"date {date[:40]!r}: want yyyymmddThhmmssZ") from None
