"""What a batch asks for, cut into requests to the store, and small ones put together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kara_worker.jobs.batch import Piece
from kara_worker.page_cache import RUN_BYTES, FileRef

GROUP_S = 0.02  # of a store's time: a page that somebody waits for is then not far behind
GROUP_FILES = 32
GROUP_BYTES = 1 << 20
SMALL_BYTES = 256 << 10


def group_files(pace_s: float, *requests_per_s: float | None) -> int:
    """How many files a store gives in GROUP_S that takes `pace_s` for one (0: nobody knows yet), and limits
    allow in that time: so they are kept without bursts."""
    most = min(GROUP_FILES, int(GROUP_S / pace_s)) if pace_s else 1
    return max(1, min([most, *(int(rate * GROUP_S) for rate in requests_per_s if rate is not None)]))


def group_bytes(*bytes_per_s: float | None) -> int:
    return min([GROUP_BYTES, *(int(rate * GROUP_S) for rate in bytes_per_s if rate is not None)])


class Run(NamedTuple):
    """Neighbouring pages of a piece: what one request to the store may bring."""

    piece: int  # index in the batch
    of: int  # pages of that piece
    ref: FileRef
    pages: range


def pages_of(piece: Piece, page_bytes: int) -> range:
    if piece.start >= piece.stop:
        return range(0)
    return range(piece.start // page_bytes, (piece.stop - 1) // page_bytes + 1)


def runs_of(pieces: Sequence[Piece], refs: Sequence[FileRef | None], page_bytes: int) -> Iterator[Run]:
    step = max(1, RUN_BYTES // page_bytes)
    for index, (piece, ref) in enumerate(zip(pieces, refs, strict=True)):
        if ref is None:
            continue
        pages = pages_of(piece, page_bytes)
        for first in range(pages.start, pages.stop, step):
            yield Run(index, len(pages), ref, range(first, min(first + step, pages.stop)))


def grouped(
    runs: Iterator[Run], page_bytes: int, most_files: Callable[[], int], most_bytes: Callable[[], int]
) -> Iterator[list[Run]]:
    """Small files together, as many as there may be at the moment; large ones alone, mounts apart."""
    group: list[Run] = []
    size = 0
    for run in runs:
        length = _length(run, page_bytes)
        large = length > SMALL_BYTES
        if group and (
            large
            or len(group) >= most_files()
            or size + length > most_bytes()
            or group[0].ref.mount is not run.ref.mount
        ):
            yield group
            group, size = [], 0
        if large:
            yield [run]
            continue
        group.append(run)
        size += length
    if group:
        yield group


def _length(run: Run, page_bytes: int) -> int:
    return min(run.pages.stop * page_bytes, run.ref.size) - run.pages.start * page_bytes
