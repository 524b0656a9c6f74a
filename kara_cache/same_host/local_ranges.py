"""Many ranges from pages of workers on this host: descriptors are taken in runs, then no request is made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kara_cache.cached_file import CachedFile
from kara_cache.checksum import checksum
from kara_cache.errors import CacheError
from kara_cache.same_host.local_pages import BLOCK_BYTES, SHORT_BLOCKS, LocalPages
from kara_cache.transport.worker_client import MAX_DESCRIPTORS, WorkerClient

_MOST_BYTES = 256 << 10  # of one range; a longer one is read as a whole, into its own memory
_ASKS = (
    4  # requests for descriptors for one batch: a cache that is still cold must not cost more than it saves
)


class Piece(NamedTuple):
    """Bytes within one stripe of one file, and where they go."""

    file: CachedFile
    start: int
    view: memoryview


def read_pieces(local: LocalPages, pieces: Sequence[Piece]) -> list[Piece]:
    """Fills the pieces that lie in pages at hand, verified; returns the others.

    A page that is wrong, or that the disk does not give, is left to `LocalPages.read_held`, which reports it.
    """
    if len(local.page_sizes) != 1:
        return list(pieces)
    (page_bytes,) = local.page_sizes
    pages, now, scratch, areas = local.pages, local.now(), local.scratch, local.areas
    preadv, sum_of = os.preadv, checksum
    left: list[Piece] = []
    for piece in pieces:  # one loop without calls of ours: thousands of rows a batch
        file, start, view = piece
        index = start // page_bytes
        page = pages.get((page_bytes, file.file_id, index))
        offset = start - index * page_bytes
        stop = offset + len(view)
        if page is None or page.renew_at < now or stop > page.length or len(view) > _MOST_BYTES:
            left.append(piece)
            continue
        step = page.block_bytes
        first = offset // step
        base = first * step
        last = -(-stop // step) * step
        count = (last - base) // BLOCK_BYTES
        try:
            if step == BLOCK_BYTES and count <= SHORT_BLOCKS and last <= page.length:
                target, covered, blocks = areas[count]
                good = preadv(page.fd, target, page.start + base) == last - base
                sums = page.block_sums
                for block in blocks:
                    if sum_of(block) != sums[first]:
                        good = False
                    first += 1
            else:
                covered = scratch[: min(last, page.length) - base]
                good = preadv(page.fd, (covered,), page.start + base) == len(covered)
                good = good and page.header.verify_blocks(covered, base)
        except OSError:
            good = False
        if good:
            view[:] = covered[offset - base : stop - base]
        else:
            left.append(piece)
    return left


def take_pages(
    local: LocalPages, worker: WorkerClient, wanted: Iterable[tuple[CachedFile, int]], deadline: float
) -> bool:
    """Asks `worker`, which must be on this host, for pages (file, index) that are not at hand.

    A few requests for runs of pages, as long as there is room for them; whether any of them came.
    Never raises for a worker that passes none.
    """
    by_file: dict[CachedFile, set[int]] = {}
    for file, index in wanted:
        by_file.setdefault(file, set()).add(index)
    asks, came = _ASKS, False
    for file, indices in by_file.items():
        missing = sorted(indices)
        while missing and asks and (room := local.room()) > 0:
            first, count = missing[0], min(MAX_DESCRIPTORS, room)
            asks -= 1
            try:
                came |= local.take(worker, file, first, count, deadline)
            except CacheError:
                return came
            missing = [index for index in missing if index >= first + count]
    return came
