"""The same rows in every format, on one disk: each column goes round all formats before the next one."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from benchmarks.machine import raise_priority
from benchmarks.rounds import Meter
from benchmarks.rows.columns import APPEND, READS, Column
from benchmarks.rows.format_process import FormatProcess, MeasureError
from benchmarks.rows.generate import Rows
from benchmarks.rows.peers import PEERS, InstallError, Peer
from benchmarks.rows.results import Results

_MEMORY = Path("/dev/shm")
_LONG_S = 1.0


@dataclass
class Contest:
    """Formats that could be started, each with its files below `home`."""

    rows: Rows
    home: Path
    results: Results
    processes: dict[str, FormatProcess]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes.values()]

    def ask(self, name: str, column: Column, number: int) -> None:
        """One measurement; a format that fails is left out of this column from now on."""
        if column.key in self.results.failed.get(name, {}) or name not in self.processes:
            return
        process = self.processes[name]
        warm(self.home / directory_of(name))
        try:
            answer = best_of(process, column)
        except MeasureError as exc:
            self.results.fail(name, column.key, str(exc))
        else:
            self.results.add(name, column.key, number, answer)

    def append(self, name: str, number: int) -> None:
        """To a file system in memory: what is measured is the format, not the disk it waits for."""
        if APPEND.key in self.results.failed.get(name, {}) or name not in self.processes:
            return
        target = (_MEMORY if _MEMORY.is_dir() else self.home) / f"kara-rows-{self.processes[name].pid}"
        try:
            answer = self.processes[name].ask(
                "write", APPEND.timeout_s, **_source(self.rows, target, keep=False)
            )
        except MeasureError as exc:
            self.results.fail(name, APPEND.key, str(exc))
        else:
            self.results.add(name, APPEND.key, number, answer)
        finally:
            shutil.rmtree(target, ignore_errors=True)


@contextlib.contextmanager
def contest(rows: Rows, home: Path, results: Results, only: list[str], nice: int = 0) -> Iterator[Contest]:
    """Writes the rows in every format, and starts a process for each."""
    made = Contest(rows, home, results, {})
    try:
        for peer in PEERS:
            if not only or any(word.lower() in peer.name.lower() for word in only):
                _enter(made, peer, nice)
        yield made
    finally:
        for process in made.processes.values():
            process.close()


def _enter(contest: Contest, peer: Peer, nice: int) -> None:
    place, name = contest.home / directory_of(peer.name), peer.name
    _say(f"{name}: writing")
    try:
        python = peer.python()
        process = FormatProcess(python, peer.module, str(place), contest.home / f"{peer.module}.log")
    except (InstallError, MeasureError) as exc:
        contest.results.fail(name, "all", str(exc))
        return
    try:
        raise_priority(process.pid, nice)
        written = process.ask("write", APPEND.timeout_s, **_source(contest.rows, place, keep=True))
        contest.results.stored_bytes[name] = written["bytes"]
        answer = process.ask("check", APPEND.timeout_s, decode=False)
        good = answer["same"] and (answer["all"], answer["single"]) == _expected(contest.rows)
        contest.results.controls[f"{name} gives the bytes that were generated"] = good
        process.close()
        process = FormatProcess(python, peer.module, str(place), contest.home / f"{peer.module}.log")
        raise_priority(process.pid, nice)
        used = process.ask("memory", APPEND.timeout_s, decode=False)
        contest.results.peak_bytes[name] = used["peak_bytes"]
        contest.results.anonymous_bytes[name] = used["anonymous_bytes"]
    except MeasureError as exc:
        contest.results.fail(name, "all", str(exc))
        process.close()
        return
    contest.processes[name] = process


def run(contest: Contest, rounds: int, columns: list[str], until: float) -> int:
    """Rounds until there are enough, or until `until` (monotonic); how many there were."""
    meter = Meter(lambda: [pid for pid in contest.pids if Path(f"/proc/{pid}").exists()])
    for number in range(rounds):
        names = list(contest.processes)
        names = names[::-1] if number % 2 else names

        def work(names: list[str] = names, number: int = number) -> dict[str, dict[str, float]]:
            _round(contest, names, number, columns)
            return {}

        contest.results.foreign.append(meter.run(work).foreign)
        if monotonic() > until:
            return number + 1
    return rounds


def _round(contest: Contest, names: list[str], number: int, columns: list[str]) -> None:
    for column in (APPEND, *READS):
        if columns and column.key not in columns:
            continue
        _say(f"round {number + 1}: {column.title}")
        for name in names:
            if not column.counts(name, number):
                continue
            if column is APPEND:
                contest.append(name, number)
            else:
                contest.ask(name, column, number)


def best_of(process: FormatProcess, column: Column) -> dict[str, float]:
    """The faster of two runs; one that took long needs no second, nor one that started processes."""
    first = process.ask(column.method, column.timeout_s, decode=column.decode)
    if column.once or first["seconds"] > _LONG_S:
        return first
    second = process.ask(column.method, column.timeout_s, decode=column.decode)
    return min(first, second, key=lambda answer: answer["seconds"] / answer["rows"])


def warm(directory: Path) -> None:
    """Everything in the kernel's memory."""
    buffer = bytearray(8 << 20)
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def _source(rows: Rows, place: Path, *, keep: bool) -> dict[str, object]:
    return {"home": str(place), "data": str(rows.data), "ends": str(rows.ends), "keep": keep}


def _expected(rows: Rows) -> tuple[str, str]:
    """The digests that `check` must give."""
    data = rows.data.read_bytes()
    ends = array("Q", rows.ends.read_bytes())
    starts = [0, *ends]
    indices = random.Random(9).sample(range(rows.count), min(500, rows.count))
    single = b"".join(data[starts[i] : ends[i]] for i in indices)
    return tuple(hashlib.blake2b(part, digest_size=16).hexdigest() for part in (data, single))  # type: ignore[return-value]


def directory_of(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
