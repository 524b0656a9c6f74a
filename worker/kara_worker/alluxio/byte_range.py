"""The Range header of one range (RFC 9110 section 14), and the two malformed ones of alluxiofs 1.1.17."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d{0,19})-(-?\d{0,19})", re.ASCII)


class RangeNotSatisfiable(ValueError):
    """Answered by 416: the file has no such bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size  # of the file, which the answer tells


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, stop) of a file of `size` bytes, or None for all of it.

    A header that is no single byte range is ignored, as the RFC allows. `bytes=0--2` is how alluxiofs
    1.1.17 asks for a whole file; `bytes=N-M` with M below N is how it asks for the rest from N, or for
    nothing: that is refused, since the whole file would be other bytes than the client believes.

    Raises RangeNotSatisfiable.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first:
        if not last or last.startswith("-"):
            return None
        return _suffix(int(last), size)
    start = int(first)
    if last in ("", "-"):
        stop = size
    elif int(last) < start:
        if start == 0 and last == "-2":  #: what 1.1.17 makes of "from 0, length -1"
            return None
        raise RangeNotSatisfiable(f"range {header!r} ends before it begins", size)
    else:
        stop = min(int(last) + 1, size)
    if start >= size:
        raise RangeNotSatisfiable(f"range {header!r} of a file of {size} bytes", size)
    return start, stop


def _suffix(count: int, size: int) -> tuple[int, int]:
    if not count or not size:
        raise RangeNotSatisfiable(f"the last {count} of {size} bytes", size)
    return max(0, size - count), size
