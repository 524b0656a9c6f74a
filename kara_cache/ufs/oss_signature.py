"""Signatures of GET and HEAD without parameters, which is what reading sends a million times.

oss2 signs everything else: it makes the same anew each time, though the time changes once a second and the
signing key once a day. OSS documentation, "Include signatures in the Authorization header", V1 and V4.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import NamedTuple
from urllib.parse import quote

_Named = list[tuple[str, str]]  # headers that are signed, sorted by their names


class _Day(NamedTuple):
    date: str
    scope: str
    key: bytes


class ReadSigner:
    """For one bucket and one key. Thread-safe: what is kept is replaced, never changed."""

    def __init__(
        self,
        bucket: str,
        *,
        key_id: str,
        secret: str,
        token: str,
        region: str,
        version: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Without `key_id` nothing is signed. `version` is v1 or v4."""
        self._bucket = bucket
        self._id = key_id
        self._secret = secret.encode()
        self._token = token
        self._region = region
        self._clock = clock
        self._second = (0, "")
        self._day = _Day("", "", b"")
        self._sign = (self._v1 if version == "v1" else self._v4) if key_id else self._none

    def headers(self, method: str, key: str) -> list[str]:
        """Lines of the head that go with `GET key` or `HEAD key`: all that are signed, and the signature."""
        named = []
        if method == "GET":  # without it, a range that ends behind the object is answered by all of it
            named.append(("x-oss-range-behavior", "standard"))
        if self._token:
            named.append(("x-oss-security-token", self._token))
        return self._sign(method, key, named)

    def _none(self, method: str, key: str, named: _Named) -> list[str]:
        return [f"{name}: {value}" for name, value in named]

    def _v1(self, method: str, key: str, named: _Named) -> list[str]:
        now = int(self._clock())
        if self._second[0] != now:
            self._second = (now, formatdate(now, usegmt=True))
        date = self._second[1]
        canonical = "".join(f"{name}:{value}\n" for name, value in named)
        text = f"{method}\n\n\n{date}\n{canonical}/{self._bucket}/{key}"
        digest = hmac.digest(self._secret, text.encode("utf-8", "surrogateescape"), "sha1")
        return [
            *(f"{name}: {value}" for name, value in named),
            f"date: {date}",
            f"authorization: OSS {self._id}:{base64.b64encode(digest).decode()}",
        ]

    def _v4(self, method: str, key: str, named: _Named) -> list[str]:
        now = int(self._clock())
        if self._second[0] != now:
            self._second = (now, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now)))
        moment = self._second[1]
        day = self._day if self._day.date == moment[:8] else self._new_day(moment[:8])
        signed = [("x-oss-content-sha256", "UNSIGNED-PAYLOAD"), ("x-oss-date", moment), *named]
        path = quote(f"/{self._bucket}/{key}".encode("utf-8", "surrogateescape"), safe="/")
        canonical = "".join(f"{name}:{value}\n" for name, value in signed)
        request = f"{method}\n{path}\n\n{canonical}\n\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"OSS4-HMAC-SHA256\n{moment}\n{day.scope}\n{digest}"
        signature = hmac.digest(day.key, text.encode(), "sha256").hex()
        credential = f"{self._id}/{day.scope}"
        return [
            *(f"{name}: {value}" for name, value in signed),
            f"authorization: OSS4-HMAC-SHA256 Credential={credential}, Signature={signature}",
        ]

    def _new_day(self, date: str) -> _Day:
        key = b"aliyun_v4" + self._secret
        for part in (date, self._region, "oss", "aliyun_v4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        self._day = day = _Day(date, f"{date}/{self._region}/oss/aliyun_v4_request", key)
        return day
