"""Bodies in the `aws-chunked` content coding, with or without signatures. No I/O.

    for each chunk: <hex size>[;chunk-signature=<hex>] CRLF <data> CRLF
    at the end:     0[;chunk-signature=<hex>] CRLF [<trailer>:<value> CRLF ...] CRLF

Source: "Signature Calculations for the Authorization Header: Transferring Payload in Multiple Chunks"
of the S3 API reference, and its page on trailing checksums.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio.sigv4 import Signed

_MAX_LINE = 4096
_MAX_CHUNK_BYTES = 1 << 34


class AwsChunked:
    """Feed it what arrives; it returns content. `finish` says whether all of it was there and signed."""

    def __init__(self, signed: Signed | None, *, signed_trailer: bool = False) -> None:
        """`signed` is who signed the request, where the chunks, and maybe the trailers, are signed too."""
        self._signed = signed
        self._trailer_due = signed is not None and signed_trailer
        self._previous = signed.signature if signed is not None else ""
        self._claimed = ""
        self._hash = sha256()
        self._line = b""
        self._left = 0
        self._state = "size"
        self._trailer_lines: list[bytes] = []
        self.trailers: dict[str, str] = {}  # names in lower case

    def feed(self, data: bytes) -> list[bytes]:
        """Raises S3Error for a wrong frame or signature."""
        content: list[bytes] = []
        at = 0
        while at < len(data) and self._state != "done":
            if self._state == "data":
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._signed is not None:
                    self._hash.update(piece)
                content.append(piece)
                if not self._left:
                    self._state = "after"
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                if len(self._line) > _MAX_LINE:
                    raise S3Error("InvalidArgument", f"aws-chunked: a line of more than {_MAX_LINE} bytes")
                break
            line, self._line = (self._line + data[at:end]).rstrip(b"\r"), b""
            at = end + 1
            self._take(line)
        return content

    def finish(self) -> None:
        """Raises S3Error where the last chunk, or the signature of the trailers, did not arrive."""
        if self._state == "trailer" and not self._trailer_lines and not self._line:
            self._state = "done"  # some clients leave out the last empty line
        if self._state != "done":
            raise S3Error("IncompleteBody", "aws-chunked: the body ended before its last chunk")
        if self._trailer_due:
            raise S3Error("SignatureDoesNotMatch", "aws-chunked: the trailers are not signed")

    def _take(self, line: bytes) -> None:
        if self._state == "after":
            if line:
                raise S3Error("InvalidArgument", "aws-chunked: no line end after a chunk")
            self._check_chunk()
            self._state = "size"
        elif self._state == "size":
            self._open_chunk(line)
        elif line:
            self._take_trailer(line)
        else:
            self._state = "done"

    def _open_chunk(self, line: bytes) -> None:
        digits, _, extension = line.partition(b";")
        if not digits or digits.strip(b"0123456789abcdefABCDEF") or len(digits) > 15:
            raise S3Error("InvalidArgument", f"aws-chunked: size {line[:32]!r}")
        self._left = int(digits, 16)
        if self._left > _MAX_CHUNK_BYTES:
            raise S3Error("EntityTooLarge", f"aws-chunked: a chunk of {self._left} bytes")
        self._claimed = extension.removeprefix(b"chunk-signature=").decode("latin-1")
        self._hash = sha256()
        if self._left:
            self._state = "data"
            return
        self._check_chunk()
        self._state = "trailer"

    def _check_chunk(self) -> None:
        if self._signed is None:
            return
        wanted = self._signed.chunk_signature(self._previous, self._hash.hexdigest())
        if not hmac.compare_digest(wanted.encode(), self._claimed.encode()):
            raise S3Error("SignatureDoesNotMatch", "aws-chunked: the signature of a chunk is wrong")
        self._previous = wanted

    def _take_trailer(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        key, text = name.strip().decode("latin-1").lower(), value.strip().decode("latin-1")
        if key != "x-amz-trailer-signature":
            self._trailer_lines.append(key.encode() + b":" + text.encode("latin-1") + b"\n")
            self.trailers[key] = text
            return
        if self._signed is not None:
            wanted = self._signed.trailer_signature(self._previous, b"".join(self._trailer_lines))
            if not hmac.compare_digest(wanted.encode(), text.encode()):
                raise S3Error("SignatureDoesNotMatch", "aws-chunked: the signature of the trailers is wrong")
            self._trailer_due = False
