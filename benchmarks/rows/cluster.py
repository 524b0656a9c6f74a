"""The same rows from a real OSS server through three workers, against the same rows on this disk."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.machine import raise_priority
from benchmarks.rounds import Meter
from benchmarks.rows.columns import READS, Column
from benchmarks.rows.format_process import FormatProcess, MeasureError
from benchmarks.rows.local import Contest, best_of, warm
from benchmarks.rows.results import Results
from benchmarks.rows.why import CLUSTER
from kara_cache.ufs import open_store
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer

DISK, SAME_HOST, NETWORK = "on this disk", "through 3 workers on this host", "through 3 workers over TCP"
WANTED = 0.7
_KEYS = {"app_key": "test-key-id", "app_secret": "test-key-secret", "use_ssl": False, "region": "cn-hangzhou"}
_PREFIX = "row/bench/rows"
TARGETS = ("loader_shuffled", "loader_shuffled_json")


@dataclass
class ClusterResults:
    """Rates of the same columns, and what the store's own log says of the second epoch."""

    results: Results = field(default_factory=Results)
    first_epoch_gets: int = 0
    later_gets: int = 0
    later_requests: int = 0

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> ClusterResults:
        counts = (document[f"store_{name}"] for name in ("gets_first_epoch", "gets_later", "others_later"))
        return cls(Results.of_document(document), *counts)

    def markdown(self) -> str:
        lines = [
            "The data set of kara_cache, from an OSS server through three workers, each a process with pages",
            "of its own on the same disk; clients, workers and store share the cores named below. *On this",
            "host* the workers hand over descriptors of their pages; *over TCP* is what a client on another",
            "host does. Ratios to the same rows on this disk, in the same rounds; everything is warm.",
            "",
            f"| column | {SAME_HOST} | {NETWORK} | wanted |",
            "|---|---|---|---|",
        ]
        for column in READS:
            cells = [self._ratio(name, column) for name in (SAME_HOST, NETWORK)]
            wanted = f"≥ {WANTED}x" if column.key in TARGETS else "-"
            if cells != ["-", "-"]:
                lines.append(f"| {column.title} | {' | '.join(cells)} | {wanted} |")
        lines += [
            "",
            f"Requests for bytes that the store answered, by its own log: {self.first_epoch_gets} in the",
        ]
        lines += [
            f"first epoch, **{self.later_gets}** in all later ones; {self.later_requests} others, at opening."
        ]
        ratios = [self.results.ratios(name, DISK, TARGETS[0]) for name in (SAME_HOST, NETWORK)]
        if any(found and statistics.median(found) < WANTED for found in ratios):
            lines += ["", CLUSTER]
        lines += [
            f"- {name}, {column}: {why}"
            for name, columns in self.results.failed.items()
            for column, why in columns.items()
        ]
        return "\n".join(lines)

    def _ratio(self, name: str, column: Column) -> str:
        ratios = self.results.ratios(name, DISK, column.key)
        if not ratios:
            return "-"
        rate = self.results.median(name, column.key) or 0.0
        low, high = min(ratios), max(ratios)
        return f"**{statistics.median(ratios):.2f}x** ({low:.2f} - {high:.2f}; {rate / 1000:,.1f}k/s)"

    def document(self) -> dict[str, object]:
        return {
            **self.results.document(),
            "store_gets_first_epoch": self.first_epoch_gets,
            "store_gets_later": self.later_gets,
            "store_others_later": self.later_requests,
        }


class OssLog:
    """What the server wrote down, from a mark on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def take(self) -> tuple[int, int]:
        """Requests since the last call: those for an object's bytes, and all others."""
        with open(self._path, encoding="utf-8") as file:
            file.seek(self._at)
            entries = [json.loads(line) for line in file]
            self._at = file.tell()
        gets = sum(1 for e in entries if e["method"] == "GET" and e["key"] and not e["query"])
        return gets, len(entries) - gets


@contextlib.contextmanager
def oss_server(home: Path) -> Iterator[tuple[str, Path, int]]:
    """`host:port`, its log and its pid."""
    log = home / "oss.jsonl"
    command = [sys.executable, "-m", "kara_worker.testing.oss_server", "--bucket", "bench"]
    command += ["--directory", str(home / "objects"), "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split("//")[1].strip(), log, server.pid
        finally:
            server.terminate()


def run(
    contest: Contest, place: Path, home: Path, rounds: int, columns: list[str], until: float, nice: int = 0
) -> ClusterResults:
    """`place` has the data set that kara_cache wrote; it is copied into the store as it is."""
    with contextlib.ExitStack() as stack:
        host, log_path, oss_pid = stack.enter_context(oss_server(home))
        url = f"oss://{host}/bench"
        _upload(place, url)
        etcd = stack.enter_context(EtcdServer())
        mounts = {"bench": {"url": url, "options": _KEYS, "freshness": "immutable"}}
        capacity = f"{max(1, 2 * contest.rows.size >> 30)}GiB"
        cluster = LocalCluster(
            3, mounts=mounts, etcd=etcd, directory=home / "cluster", capacity_bytes=capacity
        )
        stack.enter_context(cluster)
        processes = {DISK: stack.enter_context(_process(str(place), home))}
        for name, local in ((SAME_HOST, True), (NETWORK, False)):
            options = {**_KEYS, "kara": {**cluster.client_options, "local_reads": local}}
            document = json.dumps({"url": f"kara::{url}", "options": options})
            processes[name] = stack.enter_context(_process(document, home))
        found, log = ClusterResults(), OssLog(log_path)
        log.take()
        pids = [oss_pid, *(w.pid for w in cluster.workers), *(p.pid for p in processes.values())]
        for pid in pids if nice else ():
            raise_priority(pid, nice)
        processes[NETWORK].ask("sequential", 900, decode=False)
        found.first_epoch_gets, _ = log.take()
        _settle(cluster, processes[NETWORK], log)
        meter = Meter(lambda: [pid for pid in pids if Path(f"/proc/{pid}").exists()])
        for number in range(rounds):
            order = list(processes) if number % 2 == 0 else list(processes)[::-1]

            def work(order: list[str] = order, number: int = number) -> dict[str, dict[str, float]]:
                return _round(found, processes, order, number, columns, home)

            found.results.foreign.append(meter.run(work).foreign)
            if monotonic() > until:
                break
        found.later_gets, found.later_requests = log.take()
        return found


def _settle(cluster: LocalCluster, process: FormatProcess, log: OssLog) -> None:
    """Until every page is on SSD: a page is written after it was served."""
    for _ in range(20):
        process.ask("sequential", 900, decode=False)
        if log.take()[0] == 0:
            return
    raise RuntimeError("the rows do not stay in the cache")


def _round(
    found: ClusterResults,
    processes: dict[str, FormatProcess],
    order: list[str],
    number: int,
    columns: list[str],
    home: Path,
) -> dict[str, dict[str, float]]:
    for column in READS:
        if (columns and column.key not in columns) or (number and column.key not in TARGETS):
            continue  # after the first round only those of which a ratio is wanted
        print(f"cluster, round {number + 1}: {column.title}", file=sys.stderr, flush=True)
        for name in order:
            if column.key in found.results.failed.get(name, {}):
                continue
            warm(home / "cluster")
            try:
                answer = best_of(processes[name], column)
            except MeasureError as exc:
                found.results.fail(name, column.key, str(exc))
            else:
                found.results.add(name, column.key, number, answer)
    return {}


@contextlib.contextmanager
def _process(place: str, home: Path) -> Iterator[FormatProcess]:
    process = FormatProcess(Path(sys.executable), "as_kara", place, home / "as_kara-cluster.log")
    try:
        yield process
    finally:
        process.close()


def _upload(place: Path, url: str) -> None:
    store = open_store(url, _KEYS)
    for path in sorted(place.rglob("*")):
        if path.is_file():
            store.write(path.relative_to(place).as_posix(), path.read_bytes())
    store.close()
