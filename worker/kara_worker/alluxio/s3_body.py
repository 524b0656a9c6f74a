"""The content of an S3 upload: unframed, and compared with every digest that the client sent."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import AsyncIterator, Callable
from hashlib import md5, sha1, sha256
from typing import Protocol

from kara_worker.alluxio.aws_chunked import AwsChunked
from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio.sigv4 import Signed
from kara_worker.http.request import Request

_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


# CRC32C and CRC64NVME need a library each; clients that send those alone are protected by TCP and TLS only
_CHECKSUMS: dict[str, Callable[[], _Digest]] = {
    "x-amz-checksum-crc32": _Crc32,
    "x-amz-checksum-sha1": lambda: sha1(usedforsecurity=False),
    "x-amz-checksum-sha256": sha256,
    "content-md5": lambda: md5(usedforsecurity=False),
}


async def content_of(request: Request, signed: Signed | None) -> AsyncIterator[bytes]:
    """The content as it arrives. A mismatch is raised at its end, so whoever keeps it must wait for that.

    Raises S3Error, and ConnectionError when the peer goes away.
    """
    declared = request.headers.get("x-amz-content-sha256", "")
    chunked = _chunked(request, declared, signed)
    digests = _expected(request, declared)
    size = 0
    async for data in request.body():
        for piece in chunked.feed(data) if chunked is not None else (data,):
            size += len(piece)
            for digest in digests.values():
                digest.update(piece)
            yield piece
    trailers = {}
    if chunked is not None:
        chunked.finish()
        trailers = chunked.trailers
    _check_size(request, size)
    for name, digest in digests.items():
        sent = trailers.get(name) or request.headers.get(name, "")
        if name == "x-amz-content-sha256":
            if digest.digest().hex() != declared:
                raise S3Error("XAmzContentSHA256Mismatch", "the content is not the one that was signed")
        elif sent and base64.b64encode(digest.digest()).decode() != sent:
            raise S3Error("BadDigest", f"{name} is not that of the content")


def _chunked(request: Request, declared: str, signed: Signed | None) -> AwsChunked | None:
    if declared.startswith("STREAMING-AWS4-HMAC-SHA256"):
        return AwsChunked(signed, signed_trailer=declared.endswith("-TRAILER"))
    if declared.startswith("STREAMING-") or "aws-chunked" in request.headers.get("content-encoding", ""):
        return AwsChunked(None)
    return None


def _expected(request: Request, declared: str) -> dict[str, _Digest]:
    """What to compute: digests in the head, and those announced for the trailer."""
    announced = {name.strip().lower() for name in request.headers.get("x-amz-trailer", "").split(",")}
    digests = {
        name: make() for name, make in _CHECKSUMS.items() if name in request.headers or name in announced
    }
    if _SHA256.fullmatch(declared):
        digests["x-amz-content-sha256"] = sha256()
    return digests


def _check_size(request: Request, size: int) -> None:
    wanted = request.headers.get("x-amz-decoded-content-length", "")
    if wanted and wanted != str(size):
        raise S3Error("IncompleteBody", f"{size} bytes of content, {wanted[:20]} announced")
