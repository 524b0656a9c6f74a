"""Which bytes to ask for when many small spans are wanted: near ones together. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

Run = tuple[int, int]
"""Bytes [start, stop) of the stream that are fetched as one."""


def runs_of(
    starts: Sequence[int], stops: Sequence[int], gap: int, limit: int
) -> tuple[list[Run], list[int], list[int]]:
    """Covers all spans: the runs in order, then for each span the place of its first byte in the runs laid
    end to end, and its length.

    Spans no more than `gap` bytes apart share a run, of `limit` bytes at most unless a single span is
    longer; overlapping ones are fetched once where they share. Raises ValueError for a span that ends
    before it starts.
    """
    places, lengths = [0] * len(starts), [0] * len(starts)
    runs: list[Run] = []
    run_start = run_stop = base = 0  # base: bytes of the runs before
    for i in sorted(range(len(starts)), key=starts.__getitem__):
        start, stop = starts[i], stops[i]
        if stop <= start:
            if stop < start:
                raise ValueError(f"span [{start}, {stop}) ends before it starts")
            continue
        if start - run_stop > gap or stop - run_start > limit or not run_stop:
            if run_stop:
                runs.append((run_start, run_stop))
                base += run_stop - run_start
            run_start, run_stop = start, stop
        elif stop > run_stop:
            run_stop = stop
        places[i], lengths[i] = base + start - run_start, stop - start
    if run_stop:
        runs.append((run_start, run_stop))
    return runs, places, lengths


def cut(start: int, stop: int, ends: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """[start, stop) of a stream whose segments end at `ends`: segment, first byte in it and count of each."""
    segment = bisect_right(ends, start)
    while start < stop:
        last = min(stop, ends[segment])
        if last > start:  # a segment may be empty
            yield segment, start - (ends[segment - 1] if segment else 0), last - start
        start, segment = last, segment + 1


def cut_all(runs: Iterable[Run], ends: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """`cut` of all runs, which come in order: nearly all lie in the segment of the one before."""
    segment, low, high = 0, 0, 0
    for start, stop in runs:
        if stop > high:
            segment = bisect_right(ends, start)
            low, high = ends[segment - 1] if segment else 0, ends[segment]
            if stop > high:
                yield from cut(start, stop, ends)
                high = 0
                continue
        yield segment, start - low, stop - start
