"""Ranges whose pages are open and in memory, as frames in one piece of memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_cache.page import PageId, block_bytes_for
from kara_cache.wire import FRAME_DATA, FRAME_JOINED, RANGE_FRAME, FileRange
from kara_worker.data_port.verified_read import read_verified
from kara_worker.page_cache import FileRef
from kara_worker.pages.page_store import PageStore, StoredPage

_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_SHORT_BYTES = 32 << 10  # of blocks around a range; for longer ones the general way is as good
_TURN = 128  # ranges in one call, so that other readers are not kept waiting
_FRAME_BYTES = RANGE_FRAME.size

_Page = tuple[int, int, int, int, Sequence[int], StoredPage]
"""Descriptor, where data begins in it, length, bytes of a block, their sums; and what keeps it open."""


class AskedFile:
    """A file of one request, with the pages that were found. One request is one use of a page."""

    __slots__ = ("pages", "ref", "sent_bytes", "sent_pages", "size")

    def __init__(self, ref: FileRef) -> None:
        self.ref = ref
        self.size = ref.size
        self.pages: dict[int, _Page] = {}
        self.sent_pages = 0
        self.sent_bytes = 0


class RangeHits:
    """Event loop only. Nothing here waits: what would is left for later."""

    def __init__(self, pages: PageStore, scratch: memoryview) -> None:
        """`scratch` holds a page; its content is nobody's between two calls."""
        self._pages = pages
        self._page_bytes = pages.page_bytes
        self._scratch = scratch
        self._block_bytes = step = block_bytes_for(pages.page_bytes)
        blocks = [scratch[at * step : (at + 1) * step] for at in range(_SHORT_BYTES // step)]
        # the first n blocks: as what preadv fills, as a whole and one by one
        self._areas = [
            ((area,), area, blocks[:count])
            for count in range(len(blocks) + 1)
            for area in (scratch[: count * step],)
        ]

    def gather(
        self,
        files: Sequence[AskedFile | None],
        ranges: Sequence[FileRange],
        first: int,
        memory: memoryview,
        later: list[int],
        *,
        joined: bool = False,
    ) -> tuple[int, int]:
        """Writes frames of ranges from number `first` on, as many as there is room for in `memory`.

        With `joined`, ranges that follow one another are one frame under one sum. Returns the number of the
        next range, which is `first` where that one alone is too long, and how many bytes were written.
        Numbers of ranges that are not at hand, or of no file, are added to `later`.
        """
        page_bytes, step, areas, room = self._page_bytes, self._block_bytes, self._areas, len(memory)
        sum_of, preadv = checksum, os.preadv  # thousands of rounds in a batch
        used, index, end_index = 0, first, min(len(ranges), first + _TURN)
        head = begun = -1  # of the frame that is being written: where it is, and its first range
        while index < end_index:
            number, start, length = ranges[index]
            file, good = files[number], False
            if file is not None:
                if start + length > file.size:
                    length = max(0, file.size - start)
                if used + _FRAME_BYTES + length > room:
                    break
                page_number = start // page_bytes
                page = file.pages.get(page_number) or self.find(file, page_number)
                offset = start - page_number * page_bytes
                block = offset // step
                low, high = block * step, -(-(offset + length) // step) * step
                if (
                    page is not None
                    and page[3] == step
                    and high <= page[2]
                    and length <= high - low <= _SHORT_BYTES
                ):
                    fd, base, _, _, sums, _ = page
                    target, cover, blocks = areas[(high - low) // step]
                    try:
                        good = length > 0 and preadv(fd, target, base + low, _NO_WAIT) == high - low
                    except OSError:  # not in memory, or a file system that cannot tell
                        blocks = []
                    for view in blocks:
                        if sum_of(view) != sums[block]:
                            good = False
                        block += 1
            if good and file is not None:
                if head < 0:
                    head, begun = used, index
                    used += _FRAME_BYTES
                memory[used : used + length] = cover[offset - low : offset - low + length]
                used += length
                file.sent_pages += 1
                file.sent_bytes += length
                index += 1
                if not joined:
                    head = _end_frame(memory, head, used, begun, index)
                continue
            if head >= 0:
                head = _end_frame(memory, head, used, begun, index)
            end = used + _FRAME_BYTES + length
            if file is not None and self.fill(memory[used:end], index, file, start, length):
                used = end
            else:
                later.append(index)
            index += 1
        if head >= 0:
            _end_frame(memory, head, used, begun, index)
        return index, used

    def fill(self, frame: memoryview, index: int, file: AskedFile, start: int, length: int) -> bool:
        """Writes one frame, whatever its length and across pages; False if it is not at hand."""
        data, at, stop, pages = frame[_FRAME_BYTES:], start, start + length, 0
        try:
            while at < stop:
                number, offset = divmod(at, self._page_bytes)
                page = file.pages.get(number) or self.find(file, number)
                if page is None:
                    return False
                count = min(stop - at, page[2] - offset)
                if count <= 0:
                    return False
                part = read_verified(page[5], offset, offset + count, self._scratch, wait=False)
                data[at - start : at - start + count] = part
                at += count
                pages += 1
        except (BlockingIOError, PageCorrupt):
            return False
        RANGE_FRAME.pack_into(frame, 0, index, 0, length, checksum(data))
        file.sent_pages += pages
        file.sent_bytes += length
        return True

    def find(self, file: AskedFile, number: int) -> _Page | None:
        """The page if it is open."""
        stored = self._pages.peek(PageId(file.ref.file_id, number))
        if stored is None:
            return None
        header = stored.header
        page = (stored.fd, stored.offset, header.length, header.block_bytes, header.block_sums, stored)
        file.pages[number] = page
        return page


def _end_frame(memory: memoryview, head: int, end: int, first: int, stop: int) -> int:
    """Writes the head of a frame whose data, of the ranges [first, stop), is there. Returns -1: no frame."""
    data = memory[head + _FRAME_BYTES : end]
    status = FRAME_DATA if stop - first == 1 else FRAME_JOINED
    RANGE_FRAME.pack_into(memory, head, first, status, len(data), checksum(data))
    return -1
