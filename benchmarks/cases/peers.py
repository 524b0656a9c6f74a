"""Reads of the same bytes through each peer's own client and through ours, alternately, warm."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from benchmarks.peers.all import READERS
from benchmarks.peers.kara import RIVALS
from benchmarks.peers.peer import LENGTHS, MIB, Peer, Served, UnavailableError
from benchmarks.peers.reader_process import ReaderProcess
from benchmarks.rounds import interleave, tree_cpu_s
from benchmarks.scene import Scene, warm
from benchmarks.table_row import Row, Target

_ROUNDS = 5
_SECONDS = 0.2  # of one variant in one round
_AHEAD = Target(1.0)
_DETAIL = {"p50": "p50", "p99": "p99", "mean": "mean", "cpu": "client's CPU", "server": "server's CPU"}


def run(scene: Scene) -> list[Row]:
    with scene.client() as client:
        warm(client, [f"/near/{scene.names['big'][0]}"])
    rows: list[Row] = []
    for peer in filter(lambda one: scene.settings.wants(one.key), READERS):
        print(f"  {peer.name} ...", file=sys.stderr, flush=True)
        try:
            rows.extend(_Contest(scene, peer).rows())  # keeps what came before it failed
        except (UnavailableError, RuntimeError, OSError, subprocess.SubprocessError) as exc:
            scene.skipped[peer.name] = f"{type(exc).__name__}: {exc}"
    return rows


def places(length: int, size: int, count: int = 64) -> list[int]:
    """Within one page each; whole pages where `length` is a page; the beginning for the whole file (0)."""
    chosen = Random(length)
    if not length:
        return [0]
    if length == MIB:
        return [chosen.randrange(size // MIB) * MIB for _ in range(count)]
    return [chosen.randrange(size // MIB) * MIB + chosen.randrange(MIB - length) for _ in range(count)]


class _Contest:
    """One peer against the one of ours that does the same job."""

    def __init__(self, scene: Scene, peer: Peer) -> None:
        self._scene, self._peer, self._rival = scene, peer, RIVALS[peer.rival]
        self._data = (scene.files / scene.names["big"][0]).read_bytes()

    def rows(self) -> Iterator[Row]:
        """Each as it is measured, so that a peer that fails later keeps what it had."""
        python = self._peer.python()
        with contextlib.ExitStack() as stack:
            theirs = stack.enter_context(self._peer.serve(self._scene))
            ours = stack.enter_context(self._rival.serve(self._scene))
            cold = _misses(theirs)
            them = self._process(stack, self._peer, python, theirs)
            us = self._process(stack, self._rival, self._rival.python(), ours)
            stack.enter_context(self._scene.also(them.pid, us.pid, *theirs.pids))
            asked = 0.0
            for label in self._peer.lengths:
                self._prepare(label, {"us": us, "them": them})
                before, fetched = _misses(theirs), _misses(ours)
                yield self._row(label, us, them, theirs.pids)
                asked += _misses(theirs) - before
                if _misses(ours) != fetched:
                    raise RuntimeError("ours went to the store: these numbers are not of hits")
            filled = _misses(theirs) - cold
        yield from self._controls(theirs, filled, asked)

    def _process(
        self, stack: contextlib.ExitStack, peer: Peer, python: Path, served: Served
    ) -> ReaderProcess:
        log = self._scene.home / f"{peer.key}.log"
        return stack.enter_context(ReaderProcess(python, peer.module, served.options, log))

    def _prepare(self, label: str, processes: dict[str, ReaderProcess]) -> None:
        length = LENGTHS[label]
        wanted = places(length, len(self._data))
        want = hashlib.sha256()
        for start in wanted:
            want.update(self._data[start : start + length] if length else self._data)
        for name, process in processes.items():
            if process.prepare(length, wanted) != want.hexdigest():
                raise RuntimeError(f"WRONG BYTES from {self._peer.name if name == 'them' else 'us'}, {label}")

    @staticmethod
    def _measure(process: ReaderProcess, servers: tuple[int, ...], seconds: float) -> dict[str, float]:
        before = sum(map(tree_cpu_s, servers))
        found = process.measure(seconds)
        return {**found, "server": (sum(map(tree_cpu_s, servers)) - before) * 1e6 / found["calls"]}

    def _row(self, label: str, us: ReaderProcess, them: ReaderProcess, pids: tuple[int, ...]) -> Row:
        seconds = min(_SECONDS, self._scene.settings.seconds)
        variants = {
            "us": lambda: self._measure(us, (self._scene.worker.pid,), seconds),
            "them": lambda: self._measure(them, pids, seconds),
        }
        rounds = interleave(variants, min(_ROUNDS, self._scene.settings.rounds), self._scene.meter)
        detail = {
            f"{name} {title} us": rounds.median(key, metric)
            for key, name in (("us", "ours"), ("them", "peer"))
            for metric, title in _DETAIL.items()
        }
        what = f"{self._peer.name} / {self._rival.name}, {label}, p50 of a read"
        values = rounds.ratios("them", "us", "p50")
        key = f"peer_{self._peer.key}_{label}"
        return Row(key, what, values, _AHEAD, detail=detail).of(rounds)

    def _controls(self, served: Served, filled: float, asked: float) -> Sequence[Row]:
        if served.misses is None:
            return ()
        name, key = self._peer.name, f"control_peer_{self._peer.key}"
        return (
            Row(f"{key}_cold", f"control: {name}: misses while it was empty", [filled], Target(1, ""), ""),
            Row(
                f"{key}_warm",
                f"control: {name}: misses while it was measured",
                [asked],
                Target(0, "", at_least=False),
                "",
            ),
        )


def _misses(served: Served) -> float:
    return served.misses() if served.misses is not None else 0.0
