"""Spans that have sums of their own, from pages at hand: one `pread` and one sum for each.

Whoever knows the sum of a span needs neither the sums of the blocks under it nor the rest of these blocks.
What has not its sum is not returned: it is left for a read that verifies the page, which finds out whose
fault it is.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from kara_cache.checksum import checksum
from kara_cache.page import file_id
from kara_cache.same_host.local_pages import LocalPages
from kara_cache.ufs.base import FileInfo


class JoinedFiles:
    """Versions of files, laid end to end as one stream. Immutable."""

    __slots__ = ("bases", "ends", "file_ids")

    def __init__(self, files: Sequence[FileInfo]) -> None:
        """Their paths are kara paths."""
        self.file_ids = [file_id(file.path, file.version, file.size) for file in files]
        self.ends = list(accumulate(file.size for file in files))
        self.bases = [0, *self.ends]


def read_summed(
    local: LocalPages, stream: JoinedFiles, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]
) -> list[bytes | None]:
    """The bytes of each [start, stop) of the stream that lies in pages at hand and has its sum.

    None in place of any other, also of one that is no part of the stream. Makes no request.
    """
    if len(local.page_sizes) != 1:
        return [None] * len(sums)
    (page_bytes,) = local.page_sizes
    get, now, pread, sum_of = local.pages.get, local.now(), os.pread, checksum
    file_ids, ends, bases, count = stream.file_ids, stream.ends, stream.bases, len(stream.ends)
    found: list[bytes | None] = []
    for start, stop, wanted in zip(starts, stops, sums, strict=True):  # one loop without calls of ours
        number, span = bisect_right(ends, start), None
        if start >= 0 and number < count:
            at = start - bases[number]
            index = at // page_bytes
            page = get((page_bytes, file_ids[number], index))
            if page is not None and page.renew_at >= now:
                at -= index * page_bytes
                try:
                    if 0 < stop - start <= page.length - at:
                        span = pread(page.fd, stop - start, page.start + at)
                    elif start < stop <= ends[number]:
                        span = _across(local, file_ids[number], start - bases[number], stop - start)
                except OSError:  # the read that verifies the page says what is wrong
                    pass
                else:
                    if span is not None and sum_of(span) != wanted:
                        span = None
        found.append(span)
    return found


def _across(local: LocalPages, file: bytes, start: int, length: int) -> bytes | None:
    """Of a few pages of one file, for the one span in hundreds that no page has alone. Raises OSError."""
    (page_bytes,) = local.page_sizes
    if length > page_bytes:
        return None
    parts, stop = [], start + length
    while start < stop:
        index, at = divmod(start, page_bytes)
        page = local.pages.get((page_bytes, file, index))
        if page is None or page.renew_at < local.now():
            return None
        part = os.pread(page.fd, min(stop - start, page_bytes - at), page.start + at)
        if not part:
            return None
        parts.append(part)
        start += len(part)
    return b"".join(parts)
