"""What a batch asks for, cut into requests to the store, and small ones put together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from kara_worker.jobs.batch import Piece
from kara_worker.page_cache import RUN_BYTES, FileRef

GROUP_S = 0.02  # of a store's time: a page that somebody waits for is then not far behind
GROUP_FILES = 32
GROUP_BYTES = 1 << 20
SMALL_BYTES = 256 << 10


class Pace(Protocol):
    """Whoever fetches."""

    @property
    def pace_s(self) -> float:
        """What a file took lately; 0 before the first."""
        ...


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


def grouped(runs: Iterator[Run], page_bytes: int, pace: Pace) -> Iterator[list[Run]]:
    """Small files together, as many as the store gives in GROUP_S; large ones alone, mounts apart."""
    group: list[Run] = []
    size = 0
    for run in runs:
        length = _length(run, page_bytes)
        large = length > SMALL_BYTES
        if group and (
            large
            or len(group) >= _most(pace.pace_s)
            or size + length > GROUP_BYTES
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


def _most(pace_s: float) -> int:
    return max(1, min(GROUP_FILES, int(GROUP_S / pace_s))) if pace_s else 1


def _length(run: Run, page_bytes: int) -> int:
    return min(run.pages.stop * page_bytes, run.ref.size) - run.pages.start * page_bytes
