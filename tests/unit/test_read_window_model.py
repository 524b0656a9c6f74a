"""How long a file takes that is read in sequence over a link, worked out: does the window grow fast enough?

The link is `benchmarks/distant_worker.py` as arithmetic: each request waits for a round trip, each connection
carries so many bytes a second, connections do not share.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest

from kara_cache.config import ClientConfig
from kara_cache.read_window import UNIT_BYTES, Window, after_read, goes_on, outdated, wanted
from kara_cache.reading.read_threads import MAX_THREADS

MIB = UNIT_BYTES
LIMIT = ClientConfig.__dataclass_fields__["read_ahead_bytes"].default
COPY_S = 0.0002  # of a MiB, from the window into the reader's memory


@dataclass
class Link:
    round_trip_s: float
    bytes_per_s: float  # of one connection
    free_at: list[float] = field(default_factory=lambda: [0.0] * MAX_THREADS)  # when each thread is

    def took(self, count: int) -> float:
        return self.round_trip_s + count / self.bytes_per_s

    def fetched_at(self, now: float, count: int) -> float:
        """When a thread has fetched a chunk that is queued now."""
        done = max(now, heapq.heappop(self.free_at)) + self.took(count)
        heapq.heappush(self.free_at, done)
        return done


def seconds(link: Link, size: int, step: int) -> float:
    """Of a reader that does nothing but read, `step` bytes at a time."""
    now, window = 0.0, Window()
    chunks: list[tuple[int, int, float]] = []
    for start in range(0, size, step):
        stop = min(size, start + step)
        if goes_on(window, start, stop):
            window = Window(stop, window.ahead)
        else:
            window = after_read(window, start, stop, LIMIT)
            chunks = [chunk for chunk in chunks if not outdated(window, start, *chunk[:2])]
            held = [chunk[:2] for chunk in chunks]
            for at, to in wanted(window, start, stop, size, held):
                ready = link.fetched_at(now, to - at) if at >= stop else now + link.took(to - at)
                chunks.append((at, to, ready))
            chunks.sort()
        now = _delivered(chunks, link, start, stop, now) + COPY_S * (stop - start) / MIB
    return now


def _delivered(chunks: list[tuple[int, int, float]], link: Link, start: int, stop: int, now: float) -> float:
    at = start
    while at < stop:
        holding = next((chunk for chunk in chunks if chunk[0] <= at < chunk[1]), None)
        if holding is None:
            end = min([stop, *(chunk[0] for chunk in chunks if chunk[0] > at)])
            now, at = now + link.took(end - at), end
        else:
            now, at = max(now, holding[2]), min(stop, holding[1])
    return now


@pytest.mark.parametrize("step", [128 << 10, MIB])
@pytest.mark.parametrize(
    ("size", "part"),
    [(16 * MIB, 0.9), (64 * MIB, 1.5), (256 * MIB, 2.0)],
    ids=["16 MiB", "64 MiB", "256 MiB"],
)
def test_a_worker_4_ms_away_is_read_at_more_than_one_connection_carries(
    size: int, part: float, step: int
) -> None:
    """5 Gbit/s, which clouds give one flow: against one connection that sends all of the file at once."""
    link = Link(0.004, 625e6)
    assert link.took(size) / seconds(link, size, step) >= part


def test_a_window_of_one_round_trip_is_not_the_limit_20_ms_away_either() -> None:
    link = Link(0.020, 625e6)
    assert link.took(256 * MIB) / seconds(link, 256 * MIB, MIB) >= 1.1


def test_the_model_knows_a_reader_without_read_ahead() -> None:
    """One request after the other, so that the tests above can fail."""
    link, size = Link(0.004, 625e6), 16 * MIB
    one_by_one = sum(link.took(MIB) for _ in range(16))
    assert link.took(size) / one_by_one < 0.4
    assert seconds(link, 2 * MIB, MIB) == pytest.approx(2 * link.took(MIB) + 2 * COPY_S)
