"""Runs the comparison and writes the report: `python -m benchmarks.rows [--quick] [--rows N] ...`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from time import monotonic

from benchmarks import machine
from benchmarks.rows import cluster, local, report
from benchmarks.rows.columns import COLUMNS
from benchmarks.rows.generate import FULL_ROWS, generate
from benchmarks.rows.peers import LMDB, OURS, PEERS
from benchmarks.rows.results import Results

_QUICK_ROWS = 20_000


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.rewrite:
        report.rewrite(options.out)
        return 0
    signal.signal(signal.SIGTERM, _leave)
    count = options.rows or (_QUICK_ROWS if options.quick else FULL_ROWS)
    rounds = options.rounds or (1 if options.quick else 3)
    if options.nice:
        machine.raise_priority(os.getpid(), options.nice)
    with tempfile.TemporaryDirectory(prefix="kara-rows-", dir=options.home) as directory:
        home = Path(directory)
        rows = generate(home / "generated", count)
        results, through, facts = Results(), None, _facts(options.nice)
        until = monotonic() + options.minutes * 60
        with local.contest(rows, home, results, options.only or [], options.nice) as contest:
            rounds = local.run(contest, rounds, options.column or [], until)
            if options.out is not None:
                report.write(results, None, rows, facts, rounds, options.out)
            if not options.no_cluster and OURS in contest.processes:
                place, wanted = home / local.directory_of(OURS), options.column or []
                until = monotonic() + options.minutes * 60 / 3
                through = cluster.run(contest, place, home, rounds, wanted, until, options.nice)
        print(report.markdown(results, through, rows, facts, rounds))
        if options.out is not None:
            report.write(results, through, rows, facts, rounds, options.out)
    return 0 if all(results.controls.values()) else 1


def _facts(nice: int) -> dict[str, str]:
    found = machine.facts()
    wanted = ("processor", "kernel", "python", "packages")
    facts = {name: found[name] for name in wanted}
    facts["peers"] = ", ".join(f"{p.name} ({', '.join(p.requirements)})" for p in PEERS if p.requirements)
    facts["files"] = "on the disk of the temporary directory, in the kernel's memory while they are read"
    facts["priority"] = f"nice {nice}, of everything that was measured, against others on the machine"
    return facts


def _leave(*_: object) -> None:
    raise SystemExit("terminated")  # so that every process that was started is stopped


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    parser.add_argument("--rows", type=int, help=f"how many; default {FULL_ROWS:,}, a gigabyte")
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    parser.add_argument(
        "--quick", action="store_true", help="few rows, one round: for a look, not for a claim"
    )
    parser.add_argument(
        "--only", action="append", help=f"part of a format's name, e.g. {LMDB}; may be repeated"
    )
    parser.add_argument(
        "--column", action="append", choices=[column.key for column in COLUMNS], help="may be repeated"
    )
    parser.add_argument("--no-cluster", action="store_true", help="leave out the rows through three workers")
    parser.add_argument("--out", type=Path, help="directory for the report, for example docs/benchmarks")
    parser.add_argument("--home", help="where files lie; a disk with 15 GB. Default: the temporary directory")
    parser.add_argument("--minutes", type=float, default=10, help="no new round after so many; default 10")
    parser.add_argument("--nice", type=int, default=0, help="e.g. -10 as root on a machine that others use")
    parser.add_argument(
        "--rewrite", action="store_true", help="measure nothing: text from the numbers in --out"
    )
    found = parser.parse_args(arguments)
    if found.rewrite and found.out is None:
        parser.error("--rewrite needs --out")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
