"""Request bodies: bytes in, content out; Content-Length or chunked (RFC 9112 sections 6 and 7). No I/O."""

from __future__ import annotations

from kara_cache.errors import FormatError

_MAX_LINE = 4096  # a chunk-size line with extensions, or one trailer line


class BodyDecoder:
    """Feed it what arrives; it returns content and keeps what belongs to the next request in `rest`."""

    def __init__(self, *, length: int | None) -> None:
        """`length` None means chunked."""
        self._left = length or 0
        self._chunked = length is None
        self._state = "size" if length is None else "data"
        self._line = b""
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Raises FormatError when the framing is wrong: the connection cannot be used any further."""
        content: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                content.append(piece)
                if not self._left:
                    if self._chunked:
                        self._state = "after"
                    else:
                        self.done = True
            else:
                at = self._read_line(data, at)
        self.rest = data[at:]
        return content

    def _read_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at)
        if end < 0:
            self._line += data[at:]
            if len(self._line) > _MAX_LINE:
                raise FormatError(f"chunked body: a line of more than {_MAX_LINE} bytes")
            return len(data)
        line, self._line = (self._line + data[at:end]).rstrip(b"\r"), b""
        self._take_line(line)
        return end + 1

    def _take_line(self, line: bytes) -> None:
        if self._state == "after":
            if line:
                raise FormatError(f"chunked body: {line[:32]!r} after a chunk")
            self._state = "size"
        elif self._state == "size":
            digits = line.split(b";", 1)[0].strip()
            if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
                raise FormatError(f"chunked body: size {line[:32]!r}")
            self._left = int(digits, 16)
            self._state = "data" if self._left else "trailer"
        elif not line:
            self.done = True
