"""Interleaved rounds: every variant runs once in each, and a round that others disturbed runs again."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from benchmarks.timing import Call, in_turns

MOST_FOREIGN = 0.10  # of all cores
_RETRIES = 2  # of one round; after that it is kept, and the report says what its load was
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process with all its threads, to 10 ms."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def threads_cpu_s(pid: int) -> float:
    """Of a process and its threads, those that have ended left out, to a microsecond where the kernel keeps
    count (sched(7), schedstat): for turns that are too short for ticks of 10 ms."""
    try:
        counts = Path(f"/proc/{pid}/task").glob("*/schedstat")
        total_ns = sum(int(file.read_bytes().split()[0]) for file in counts)
    except OSError:
        total_ns = 0
    return total_ns / 1e9 or process_cpu_s(pid)


def tree_cpu_s(pid: int) -> float:
    """Of a process and all below it, with those that it has waited for."""
    total, left = 0.0, [pid]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):  # ended between two looks; its parent has its time then
            with open(f"/proc/{one}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            total += sum(map(int, fields[11:15])) * _TICK_S
            left += children(one)
    return total


def children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    rounds: int = 7
    seconds: float = 0.5  # of one variant in one round
    tiny: bool = False  # small populations: shows that everything runs, and nothing else
    peers: tuple[str, ...] = ()  # keys of those that are wanted; none: all

    @classmethod
    def quick(cls) -> Settings:
        return cls(rounds=1, seconds=0.05, tiny=True)

    def wants(self, peer: str) -> bool:
        return not self.peers or peer in self.peers

    def most(self, rounds: int) -> Settings:
        """For a case whose rounds are dear."""
        return replace(self, rounds=min(rounds, self.rounds))


@dataclass
class Round:
    """What each variant gave, and how much of the machine was used by processes that are not ours."""

    values: dict[str, dict[str, float]]
    foreign: float


@dataclass
class Rounds:
    """The rounds of one comparison."""

    kept: list[Round] = field(default_factory=list)
    retried: int = 0

    def ratios(self, a: str, b: str, metric: str) -> list[float]:
        """a / b in each round."""
        return [r.values[a][metric] / r.values[b][metric] for r in self.kept if r.values[b][metric]]

    def differences(self, a: str, b: str, metric: str) -> list[float]:
        return [r.values[a][metric] - r.values[b][metric] for r in self.kept]

    def of(self, variant: str, metric: str) -> list[float]:
        return [r.values[variant][metric] for r in self.kept]

    def median(self, variant: str, metric: str) -> float:
        return statistics.median(self.of(variant, metric))

    @property
    def foreign(self) -> float:
        """The median part of the machine that others used."""
        return statistics.median(r.foreign for r in self.kept)


class Meter:
    """CPU time that is not ours, from /proc: ours are this process, its dead children, `pids` and theirs."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids

    def ours_s(self) -> float:
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return own + sum(tree_cpu_s(pid) for pid in self._pids())

    @staticmethod
    def machine_s() -> float:
        """Busy seconds of all cores, interrupts too, which are in the stime of the process they hit."""
        with open("/proc/stat", "rb") as file:
            fields = file.readline().split()
        return sum(int(fields[i]) for i in (1, 2, 3, 6, 7, 8)) * _TICK_S

    def run(self, work: Callable[[], dict[str, dict[str, float]]]) -> Round:
        machine, ours, began = self.machine_s(), self.ours_s(), perf_counter()
        values = work()
        took = perf_counter() - began
        foreign = (self.machine_s() - machine) - (self.ours_s() - ours)
        return Round(values, max(0.0, foreign) / (took * (os.cpu_count() or 1)))


Variant = Callable[[], Mapping[str, float]]


def interleave(
    variants: Mapping[str, Variant], rounds: int, meter: Meter, *, in_order: bool = False
) -> Rounds:
    """Runs A B, B A, A B ...; each variant returns its metrics. `in_order`: A B, A B ..."""
    result = Rounds()
    names = list(variants)
    for number in range(rounds):
        order = names if in_order or number % 2 == 0 else names[::-1]
        _keep_best(result, meter, lambda order=order: {name: dict(variants[name]()) for name in order})
    return result


def _keep_best(result: Rounds, meter: Meter, work: Callable[[], dict[str, dict[str, float]]]) -> None:
    tries = []
    for _ in range(1 + _RETRIES):
        tries.append(meter.run(work))
        if tries[-1].foreign <= MOST_FOREIGN:
            break
    result.retried += len(tries) - 1
    result.kept.append(min(tries, key=lambda one: one.foreign))


def interleave_calls(calls: Mapping[str, Call], settings: Settings, meter: Meter) -> Rounds:
    """Rounds of single calls in short turns: see `timing.in_turns`."""
    result = Rounds()
    for _ in range(settings.rounds):
        _keep_best(result, meter, lambda: in_turns(calls, settings.seconds))
    return result
