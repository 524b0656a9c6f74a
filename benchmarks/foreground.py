"""What readers of cached pages feel while cold files stream through their worker.

    python -m benchmarks.foreground [--quick] [--rate BYTES] [--out FILE]

One worker, an nginx as its store, one reader of 4 KiB of a cached file at a steady pace, and another
process that reads a cold file of 1 GiB from its beginning to its end, 1 MiB at a time. Rounds of quiet and of
streaming alternate; the ratio of the slowest hundredths is taken round by round, the median of them counts
(target: 3). The processor time that the worker spends for a MiB that it fills is told beside it: it does not
depend on who else uses the machine.

Nothing is pinned. Reader and streaming process, in life, are other machines, which take no processor from a
worker: so as root the session of the streaming process has nice 10, the reader's nice -10 (sched(7),
autogroup). nginx and the worker have what they have.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.machine import raise_priority
from benchmarks.servers import nginx
from benchmarks.steady_reader import SteadyReader, percentile
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.jobs import free
from kara_cache.quantity import parse_bytes
from kara_worker.testing.cluster import LocalCluster

READ_BYTES = 4 << 10
READS_PER_S = 500
READER_NICE, OTHERS_NICE = -10, 10
STEP_BYTES = 1 << 20
TARGET = 3.0


@dataclass
class Round:
    quiet_p50_ms: float
    quiet_p99_ms: float
    streaming_p50_ms: float
    streaming_p99_ms: float
    streamed_bytes_per_s: float
    worker_cpu_us_per_mib: float


@dataclass
class Result:
    rounds: list[Round] = field(default_factory=list)
    p99_ratio: float = 0.0  # median of the rounds
    p50_ratio: float = 0.0
    streamed_bytes_per_s: float = 0.0
    worker_cpu_us_per_mib: float = 0.0
    fetched_ratio: float = 0.0  # bytes from the store, of those that were streamed: all, or it was not cold
    met: bool = False


def stream(options: str, path: str, rate: str) -> None:
    """In a process of its own: the file from its beginning to its end, at most `rate` bytes a second."""
    with CacheClient(ClientConfig.load(env={}, local_reads=False, **json.loads(options))) as client:
        info = client.info(path)
        view = memoryview(bytearray(STEP_BYTES))
        began, per_s = time.monotonic(), float(rate)
        for start in range(0, info.size, STEP_BYTES):
            client.read_into(info, start, view[: info.size - start])
            if per_s:
                time.sleep(max(0.0, began + start / per_s - time.monotonic()))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(options: argparse.Namespace, home: Path) -> Result:
    files, result = home / "files", Result()
    files.mkdir()
    block = random.Random(1).randbytes(16 << 20)
    (files / "hot.bin").write_bytes(block[: 4 << 20])
    with (files / "cold.bin").open("wb") as out:
        for _ in range(options.bytes // len(block)):
            out.write(block)
    with nginx(files, home / "nginx") as web:
        cluster = LocalCluster(
            1, mounts={"web": web.url}, directory=home / "cluster", capacity_bytes=2 * options.bytes
        )
        with cluster, CacheClient(ClientConfig.load(env={}, **cluster.client_options)) as client:
            pid = cluster.workers[0].pid
            fetched = cluster.total("kara_worker_store_read_bytes_total")
            for _ in range(options.rounds):
                result.rounds.append(one_round(options, cluster, pid))
                free(client, "/web/cold.bin")
            fetched = cluster.total("kara_worker_store_read_bytes_total") - fetched
            result.fetched_ratio = fetched / (options.rounds * options.bytes)
    summarize(result)
    return result


def reader_of(cluster: LocalCluster) -> SteadyReader:
    reader = SteadyReader(cluster.client_options, "/web/hot.bin", read_bytes=READ_BYTES, per_s=READS_PER_S)
    as_another_machine(reader.pid, READER_NICE)
    return reader


def as_another_machine(pid: int, nice: int) -> None:
    if os.geteuid() == 0:
        raise_priority(pid, nice)


def one_round(options: argparse.Namespace, cluster: LocalCluster, pid: int) -> Round:
    reader = reader_of(cluster)
    time.sleep(options.seconds)
    quiet = reader.stop()
    reader = reader_of(cluster)
    arguments = [json.dumps(cluster.client_options), "/web/cold.bin", str(options.rate)]
    before, began = cpu_s(pid), time.monotonic()
    command = [sys.executable, "-m", "benchmarks.foreground", "--stream", *arguments]
    with subprocess.Popen(command, start_new_session=True) as streaming_process:
        as_another_machine(streaming_process.pid, OTHERS_NICE)
    if streaming_process.returncode:
        raise RuntimeError(f"the stream ended with status {streaming_process.returncode}")
    took, spent = time.monotonic() - began, cpu_s(pid) - before
    streaming = reader.stop()
    return Round(
        percentile(quiet, 50),
        percentile(quiet, 99),
        percentile(streaming, 50),
        percentile(streaming, 99),
        options.bytes / took,
        spent * 1e6 / (options.bytes >> 20),  # a few reads of 4 KiB are in it
    )


def summarize(result: Result) -> None:
    rounds = result.rounds
    result.p99_ratio = statistics.median(one.streaming_p99_ms / one.quiet_p99_ms for one in rounds)
    result.p50_ratio = statistics.median(one.streaming_p50_ms / one.quiet_p50_ms for one in rounds)
    result.streamed_bytes_per_s = statistics.median(one.streamed_bytes_per_s for one in rounds)
    result.worker_cpu_us_per_mib = statistics.median(one.worker_cpu_us_per_mib for one in rounds)
    result.met = result.p99_ratio <= TARGET


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreground", description=__doc__)
    parser.add_argument("--bytes", type=parse_bytes, default=1 << 30, help="of the cold file")
    parser.add_argument("--rate", type=parse_bytes, default=0, help="most bytes a second to stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of quiet in each round")
    parser.add_argument("--quick", action="store_true", help="two rounds with 256 MiB")
    parser.add_argument("--home", metavar="DIR", help="for stores and pages; default: a temporary directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the result as JSON")
    parser.add_argument("--stream", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        stream(*options.stream)
        return 0
    if options.quick:
        options.bytes, options.rounds, options.seconds = 256 << 20, 2, 2.0
    with tempfile.TemporaryDirectory(prefix="kara-foreground-", dir=options.home) as home:
        result = measure(options, Path(home))
    text = json.dumps(asdict(result), indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
