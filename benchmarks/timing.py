"""Times of single calls, taken in short turns so that all variants see the same machine."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Callable, Mapping
from time import perf_counter

TURN_S = 0.05  # of one variant before the next one runs

Call = Callable[[int], object]  # gets the number of the call


def aligned(size: int) -> memoryview:
    """Memory that is page-aligned and present."""
    memory = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    memory[:] = bytes(size)
    return memory


def in_turns(calls: Mapping[str, Call], seconds: float) -> dict[str, dict[str, float]]:
    """p50, p90, p99 and mean in us of each, after `seconds` each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    left = dict.fromkeys(calls, seconds)
    while any(value > 0 for value in left.values()):
        for name, call in calls.items():
            left[name] -= _turn(call, times[name])
    return {name: summary(found) for name, found in times.items()}


def _turn(call: Call, times: list[float]) -> float:
    began = last = perf_counter()
    number = len(times)
    while last - began < TURN_S:
        call(number)
        now = perf_counter()
        times.append(now - last)
        last, number = now, number + 1
    return last - began


def summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)

    def at(part: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1e6

    return {
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "mean": statistics.fmean(ordered) * 1e6,
        "calls": float(len(ordered)),
    }  # fmt: skip
