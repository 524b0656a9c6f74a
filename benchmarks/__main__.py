"""Runs the comparisons and writes the report: `python -m benchmarks [--quick] [--only NAME] ...`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine, report
from benchmarks.cases import batch, client, cold, corrupt, faces, same_host, worker
from benchmarks.rounds import Settings
from benchmarks.scene import Scene, scene
from benchmarks.table_row import Row

CASES: dict[str, Callable[[Scene], list[Row]]] = {
    "worker": worker.run,
    "client": client.run,
    "fsspec": faces.run,
    "batch": batch.run,
    "same-host": same_host.run,
    "cold": cold.run,
    "corrupt": corrupt.run,
}


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    machine.enter_namespace(arguments)
    signal.signal(signal.SIGTERM, _leave)
    base = Settings.quick() if options.quick else Settings()
    settings = Settings(options.rounds or base.rounds, base.seconds)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="kara-bench-", dir=options.home) as home,
        scene(settings, Path(home)) as stage,
    ):
        for pid in (os.getpid(), *stage.pids) if options.nice else ():
            machine.raise_priority(pid, options.nice)
        for name in options.only or CASES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += CASES[name](stage)
        loader = stage.loader.kind
    facts = machine.facts()
    print("\n".join(f"{name}: {value}" for name, value in {**facts, "loader": loader}.items()))
    print("\n" + report.screen(rows))
    if options.out is not None:
        report.write(rows, facts, loader, options.out)
    return 0 if all(row.verdict != "MISSED" for row in rows if row.key.startswith("control")) else 1


def _leave(*_: object) -> None:
    raise SystemExit("terminated")  # so that every server that was started is stopped


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, help="interleaved rounds of each comparison; default 7, quick 3"
    )
    parser.add_argument("--quick", action="store_true", help="short rounds: for a look, not for a claim")
    parser.add_argument(
        "--only", action="append", choices=list(CASES), help="one comparison; may be repeated"
    )
    parser.add_argument("--out", type=Path, help="directory for the report, for example docs/benchmarks")
    parser.add_argument(
        "--home", help="where files and pages lie; a disk, not tmpfs. Default: the temporary directory"
    )
    parser.add_argument("--nice", type=int, default=0, help="e.g. -10 as root on a machine that others use")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
