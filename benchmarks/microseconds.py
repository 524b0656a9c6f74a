"""Where each microsecond of a read goes, from profiles of the worker and of the client.

    python -m benchmarks.microseconds [--seconds S] [--out docs/performance]

For 4 KiB and 1 MiB: the worker under 16 connections of the loader, and a client that reads over TCP,
both warm. The time is split by lines of our source, as py-spy sees them; a system call counts for the line
that makes it. How much of it is in the kernel is from /proc. `--out` gets a flame graph for each profile.
"""

from __future__ import annotations

import argparse
import contextlib
import linecache
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from benchmarks import machine, plot
from benchmarks.cases.peers import places
from benchmarks.peers.kara import RIVALS
from benchmarks.peers.peer import KIB, MIB
from benchmarks.peers.reader_process import ReaderProcess
from benchmarks.published import environment
from benchmarks.rounds import Settings
from benchmarks.scene import Scene, read_url, scene, warm

_PROFILER = "py-spy==0.4.3"
_RATE = 500  # samples a second
_TOP = 14  # lines that are shown
_LOOP = "run_until_complete"  # the line in which the event loop waits
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ROOT = str(Path(__file__).resolve().parent.parent) + "/"
_HEAD = """# Where the microseconds go

Written by `python -m benchmarks.microseconds`; [performance](../performance.md) says what to read in it. The
time of a read is split by lines of our source: CPU in the worker, which serves 16 connections at once, and
time that passes in a client that reads alone, waiting too. One profile each."""
_LINE = re.compile(r":\d+\)$")
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^()]+):(?P<line>\d+)\)$")


@dataclass(frozen=True)
class Profile:
    """Of one process while it served or read `reads` times."""

    title: str
    us: float  # of CPU in the worker, which works for many at once; that pass, waiting too, in the client
    user_us: float
    system_us: float
    lines: Counter[tuple[str, str]]  # samples by place and its source

    def markdown(self) -> str:
        total = sum(self.lines.values()) or 1
        head = f"{self.title}: {self.us:.1f} us a read"
        split = f"CPU: {self.user_us:.1f} us outside the kernel, {self.system_us:.1f} us in it."
        rows = [f"## {head}", "", split, "", "| us | part | where | line |", "|---|---|---|---|"]
        rows += [
            f"| {self.us * count / total:.2f} | {count / total:.0%} | {place} | `{source}` |"
            for (place, source), count in self.lines.most_common(_TOP)
        ]
        rest = total - sum(count for _, count in self.lines.most_common(_TOP))
        return "\n".join([*rows, f"| {self.us * rest / total:.2f} | {rest / total:.0%} | all others | |"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.microseconds", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each profile")
    parser.add_argument("--out", type=Path, help="directory for flame graphs")
    options = parser.parse_args(arguments)
    spy = environment(_PROFILER).with_name("py-spy")
    machine.enter_namespace(arguments, "benchmarks.microseconds")
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kara-us-") as home, scene(Settings(), Path(home)) as stage:
        for label, length in (("4 KiB", 4 * KIB), ("1 MiB", MIB)):
            for profile in _profiles(stage, spy, label, length, options.seconds, options.out):
                print(profile.markdown() + "\n", flush=True)
                found.append(profile.markdown())
    if options.out is not None:
        facts = [f"- {name}: {value}" for name, value in machine.facts().items()]
        (options.out / "microseconds.md").write_text("\n\n".join([_HEAD, "\n".join(facts), *found]) + "\n")
    return 0


def _profiles(
    stage: Scene, spy: Path, label: str, length: int, seconds: float, out: Path | None
) -> Iterator[Profile]:
    path = f"/near/{stage.names['big'][0]}"
    with stage.client() as client:
        warm(client, [path])
        info = client.info(path)
    prefix = f"http://{stage.worker.address}"
    starts = places(length, info.size, 512)
    targets = [read_url(stage.worker, info, at, length).removeprefix(prefix) for at in starts]
    name = label.replace(" ", "")

    def load() -> tuple[float, float]:
        with stage.clients_pinned():
            found = stage.loader.run(stage.worker.port, targets, connections=16, seconds=seconds + 2)
        return found["requests"], found["seconds"]

    yield _profile(f"Worker, {label}", stage.worker.pid, spy, seconds, load, out, f"worker-{name}")
    rival = RIVALS["kara_tcp"]
    with rival.serve(stage) as served, contextlib.ExitStack() as stack:
        reader = ReaderProcess(rival.python(), rival.module, served.options, stage.home / "reader.log")
        stack.enter_context(reader)
        reader.prepare(length, starts)

        def read() -> tuple[float, float]:
            found = reader.measure(seconds + 2)
            return found["calls"], found["calls"] * found["mean"] / 1e6

        yield _profile(f"Client, {label}", reader.pid, spy, seconds, read, out, f"client-{name}")


def _profile(
    title: str, pid: int, spy: Path, seconds: float, work: Callable[[], tuple[float, float]],
    out: Path | None, name: str,
) -> Profile:  # fmt: skip
    """Samples of the main thread, of a worker without those in which its loop waits for sockets."""
    results: list[tuple[float, float]] = []
    user, system = _cpu_s(pid)
    thread = Thread(target=lambda: results.append(work()))
    thread.start()
    with tempfile.TemporaryDirectory(prefix="kara-spy-") as directory:
        folded = Path(directory) / "folded"
        command = [str(spy), "record", "--pid", str(pid), "--rate", str(_RATE), "--threads"]
        command += ["--duration", str(max(1, round(seconds))), "--idle"]
        command += ["--format", "raw", "--output", str(folded)]
        subprocess.run(command, check=True, capture_output=True, timeout=seconds * 5 + 60)
        thread.join()
        text = folded.read_text()
    after_user, after_system = _cpu_s(pid)
    reads, took = results[0]
    user_us, system_us = (after_user - user) * 1e6 / reads, (after_system - system) * 1e6 / reads
    lines, us = _by_line(text), took * 1e6 / reads
    if name.startswith("worker"):
        lines = Counter({key: count for key, count in lines.items() if _LOOP not in key[1]})
        us = user_us + system_us
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.svg").write_text(plot.flame(title, _stacks(text)))
    return Profile(title, us, user_us, system_us, lines)


def _by_line(folded: str) -> Counter[tuple[str, str]]:
    """Samples by the innermost line of ours."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in folded.splitlines():
        stack, _, count = entry.rpartition(" ")
        frames = stack.split(";")
        if "MainThread" not in stack:
            continue
        for frame in reversed(frames):
            match = _FRAME.match(frame)
            if match and (source := _source(match["file"], int(match["line"]))):
                place = f"{match['file'].rpartition('/')[2]} {match['function']}"
                found[place, source] += int(count)
                break
    return found


def _stacks(folded: str) -> Counter[tuple[str, ...]]:
    """Samples of the main thread by functions; without those in which the worker's loop waits."""
    found: Counter[tuple[str, ...]] = Counter()
    for entry in folded.splitlines():
        stack, _, count = entry.rpartition(" ")
        frames = [_LINE.sub(")", frame) for frame in stack.split(";") if "frozen" not in frame][1:]
        if "MainThread" in stack and frames and not frames[-1].startswith("Runner.run "):
            found[tuple(frames)] += int(count)
    return found


def _source(file: str, line: int) -> str:
    for base in ("", _ROOT, _ROOT + "worker/"):
        if text := linecache.getline(base + file, line).strip():
            return text.replace("|", "\\|")[:100]
    return ""


def _cpu_s(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) * _TICK_S, int(fields[12]) * _TICK_S


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
