"""Runs the comparisons and writes the report: `python -m benchmarks [--quick] [--only NAME,NAME] ...`.

A name means every case that begins with it: `growth` is all that grow, `growth-pages` one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

from benchmarks import controls, machine, report
from benchmarks.cases import (
    batch,
    client,
    cold,
    commands,
    corrupt,
    disk,
    faces,
    growth_connections,
    growth_directory,
    growth_pages,
    growth_workers,
    imports,
    loader_memory,
    peers,
    rows,
    same_host,
    servers,
    two_jobs,
    whole_files,
    worker,
)
from benchmarks.peers import all as everybody
from benchmarks.peers.peer import UnavailableError
from benchmarks.rounds import Settings
from benchmarks.rows.peers import PEERS as FORMATS
from benchmarks.rows.peers import InstallError
from benchmarks.scene import Scene, scene
from benchmarks.table_row import Row

CASES: dict[str, Callable[[Scene], list[Row]]] = {  # in this order: what has a target of its own comes first
    "worker": controls.from_empty("worker", worker.run),
    "client": client.run,
    "fsspec": controls.from_empty("fsspec", faces.run),
    "batch": controls.from_empty("batch", batch.run),
    "same-host": controls.from_empty("same-host", same_host.run),
    "cold": controls.again_from_store("cold", cold.run),
    "disk": disk.run,
    "import": imports.run,
    "memory": loader_memory.run,
    "page-churn": commands.page_churn,
    "prewarm": commands.prewarm,
    "foreground": commands.foreground,
    "rows": rows.run,
    "servers": servers.run,
    "peers": peers.run,
    "corrupt": corrupt.run,
    "two-jobs": two_jobs.run,
    "growth-pages": growth_pages.run,
    "growth-connections": controls.from_empty("growth-connections", growth_connections.run),
    "growth-workers": growth_workers.run,
    "growth-directory": growth_directory.run,
    "checkpoint": whole_files.checkpoint,
    "parquet": whole_files.parquet,
    "large": controls.from_empty("large", whole_files.large),
    "images": commands.image_folder,
}
PEERS = {peer.key: peer for peer in (*everybody.SERVERS, *everybody.READERS)}

_REPORT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    names = _chosen(options.only)
    if not machine.in_namespace():
        _install(names, options.peer)  # a namespace of its own has no way to a registry
    machine.enter_namespace(arguments)
    signal.signal(signal.SIGTERM, _leave)
    base = Settings.quick() if options.quick else Settings()
    settings = replace(base, rounds=options.rounds or base.rounds, peers=tuple(options.peer or ()))
    document = _measured(names, settings, options)
    print("\n".join(f"{name}: {value}" for name, value in document.facts.items()))
    print("\n" + document.screen())
    complete = not (options.quick or options.only or options.peer)
    if out := options.out or (_REPORT if complete else None):
        document.write(out)
    problems = document.problems()
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


def _measured(names: list[str], settings: Settings, options: argparse.Namespace) -> report.Report:
    found_rows: list[Row] = []
    failed: list[str] = []
    until = monotonic() + 60 * options.minutes
    with (
        tempfile.TemporaryDirectory(
            prefix="kara-bench-", dir=options.home, ignore_cleanup_errors=True
        ) as home,
        scene(settings, Path(home)) as stage,
    ):
        for pid in (os.getpid(), *stage.pids) if options.nice else ():
            machine.raise_priority(pid, options.nice)
        for name in names:
            if (began := monotonic()) > until:
                stage.skipped[f"case {name}"] = f"{options.minutes:g} minutes were over; --minutes gives more"
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                found = CASES[name](stage)
            except Exception as exc:
                if options.strict:
                    raise
                stage.skipped[f"case {name}"] = f"{type(exc).__name__}: {exc}"
                failed.append(name)
                continue
            found_rows += [replace(row, case=name) for row in found]
            print(f"{name}: {len(found)} rows in {monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        facts = {**machine.facts(), "loader": stage.loader.kind}
        return report.Report(found_rows, stage.skipped, facts, options.quick, failed)


def _install(names: list[str], wanted: list[str] | None) -> None:
    """Environments of published clients, made once; who cannot be had is named when its turn comes."""
    clients = [peer for key, peer in PEERS.items() if not wanted or key in wanted]
    formats = [one for one in FORMATS if one.name in rows.PEERS.values()]
    needed = [*(clients if {"peers", "servers"} & set(names) else ()), *(formats if "rows" in names else ())]
    for peer in needed:
        with contextlib.suppress(UnavailableError, InstallError):
            peer.python()


def _leave(*_: object) -> None:
    raise SystemExit("terminated")  # so that every server that was started is stopped


def _chosen(only: list[str] | None) -> list[str]:
    """Cases in their order, by prefixes of their names; all without any."""
    wanted = [name for text in only or [] for name in text.split(",") if name]
    for prefix in wanted:
        if not any(name.startswith(prefix) for name in CASES):
            raise SystemExit(f"--only: no case begins with {prefix!r}; there are {', '.join(CASES)}")
    return [name for name in CASES if not wanted or name.startswith(tuple(wanted))]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, help="interleaved rounds of each comparison; default 7, quick 1"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, once: shows that everything runs, not how fast"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME,NAME", help=f"some cases only: {', '.join(CASES)}"
    )
    parser.add_argument(
        "--peer",
        action="append",
        choices=list(PEERS),
        help="one peer only, in servers and peers; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="directory for the report; docs/benchmarks for a run of everything, else none",
    )
    parser.add_argument(
        "--home", help="where files and pages lie; a disk, not tmpfs. Default: the temporary directory"
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="after so many no other case begins (default: 30)"
    )
    parser.add_argument("--nice", type=int, default=0, help="e.g. -10 as root on a machine that others use")
    parser.add_argument(
        "--strict", action="store_true", help="a case that fails ends the run with its traceback"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
