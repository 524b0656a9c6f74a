"""Load jobs against what people do without them: `python -m benchmarks.prewarm [--quick] [--out FILE]`.

Small objects: an OSS bucket of objects of 4 to 40 KB, copied by 32 threads with OSS's own SDK, then loaded.
Large files: an nginx behind a line of a fixed rate (htb in a network namespace of our own, which needs
root); the line rate is what as many plain connections get of it as the load has. Readers: one that reads
64 KiB of what is cached, 200 times a second: for 20 s alone (4 000 reads, so 40 of them are the slowest
hundredth), while the copy runs, while the load of small objects runs, while plain connections read the
large files, and while the load of them runs. Everything in one run, in this order.

Nothing is pinned: store, etcd, workers, the processes that fetch for them, copy and reader share all
cores. The store and the reader, in life, are other machines. So as root each has a session of its own, which
the kernel schedules as one (sched(7), autogroup): the reader's with nice -10, for nothing else runs where
it waits, that of the OSS server with nice 5, since it takes no processor from workers; copy and load have
the same one. nginx, copy and plain connections are in this program's session. Workers keep many pages to a
file where the file system can (`--page-store auto`).

What a reader feels of the store and of the network alone is told beside what it feels of a load:
`copy_p99_ms` and `line_p99_ms` were taken with no load running. And two controls of the same weight: the
same objects loaded at the same speed by workers that the reader does not use (`others_p99_ms`), and the same
large files written to this disk by plain connections (`kept_p99_ms`): what is the machine's, not a worker's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import raise_priority
from benchmarks.servers import nginx
from benchmarks.steady_reader import SteadyReader, percentile
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.jobs import LoadJob, LoadOptions, LoadState, free, stop_load, submit_load, wait_load
from kara_cache.quantity import parse_bytes
from kara_worker.testing.cluster import LocalCluster, free_ports
from kara_worker.testing.etcd_server import EtcdServer

COPY_THREADS = 32
HOT_BYTES = 4 << 20
READ_BYTES = 64 << 10
READS_PER_S = 200
IDLE_S = 20.0
READER_NICE, STORE_NICE = -10, 5
LINE_BITS_PER_S = 1_600_000_000  # 200 MB/s: what two shared cores can store
_IN_NAMESPACE = "KARA_PREWARM_NAMESPACE"
LOAD_THREADS = 16
FETCHING_RESTS_S = 12.0  # processes that fetch end 10 s after the last job: idle is without them
ID, SECRET, BUCKET = "bench", "bench-secret-0123456789", "data"


@dataclass
class Result:
    objects: int = 0
    copy_per_s: float = 0.0
    load_per_s: float = 0.0
    small_ratio: float = 0.0
    small_fetched_ratio: float = 0.0  # bytes that left the store for the load, of the bytes there are
    big_bytes: int = 0
    line_bytes_per_s: float = 0.0
    big_bytes_per_s: float = 0.0
    big_ratio: float = 0.0
    big_fetched_ratio: float = 0.0
    idle_reads: int = 0
    idle_p50_ms: float = 0.0
    idle_p99_ms: float = 0.0
    copy_p99_ms: float = 0.0  # while others copy from the store, past the cache
    small_p50_ms: float = 0.0
    small_p99_ms: float = 0.0
    others_p99_ms: float = (
        0.0  # while workers that the reader does not use load as many small objects a second
    )
    line_p99_ms: float = 0.0  # while others read the large files, past the cache
    kept_p99_ms: float = 0.0  # while others read some of them and write them to this disk
    big_p50_ms: float = 0.0
    big_p99_ms: float = 0.0
    p99_ratio: float = 0.0  # the larger one of small and big, to idle
    stop_s: float = 0.0


def felt(cluster: LocalCluster, work: Callable[[], object]) -> tuple[float, list[float]]:
    """How long the work took, and the latencies of a reader meanwhile."""
    reader = SteadyReader(cluster.client_options, "/web/hot.bin", read_bytes=READ_BYTES, per_s=READS_PER_S)
    if os.geteuid() == 0:
        raise_priority(reader.pid, READER_NICE)
    seconds = timed(work)
    return seconds, reader.stop()


def p50_p99(latencies: list[float]) -> tuple[float, float]:
    return percentile(latencies, 50), percentile(latencies, 99)


@contextlib.contextmanager
def oss_store(home: Path) -> Iterator[tuple[int, Path]]:
    """Its port, and its log of requests."""
    (port,) = free_ports(1)
    log = home / "oss.jsonl"
    arguments = ["--port", str(port), "--key-id", ID, "--key-secret", SECRET, "--bucket", BUCKET]
    process = subprocess.Popen(
        [sys.executable, "-m", "kara_worker.testing.oss_server", *arguments, "--log", str(log)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if os.geteuid() == 0:
        raise_priority(process.pid, STORE_NICE)
    try:
        wait_for_port(port)
        yield port, log
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def enter_namespace(arguments: list[str]) -> None:
    """Starts this program again where loopback is ours to slow down. Without root nothing is slowed."""
    if os.environ.get(_IN_NAMESPACE) or os.geteuid() != 0 or not shutil.which("unshare"):
        return
    os.environ[_IN_NAMESPACE] = "1"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    again = [sys.executable, "-m", "benchmarks.prewarm", *arguments]
    os.execvp("unshare", ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again])


def slow_down(port: int) -> None:
    """What comes from this port shares a line of LINE_BITS_PER_S."""
    if not os.environ.get(_IN_NAMESPACE):
        return
    for command in (
        "qdisc add dev lo root handle 1: htb default 10",
        "class add dev lo parent 1: classid 1:10 htb rate 80gbit quantum 200000",
        f"class add dev lo parent 1: classid 1:20 htb rate {LINE_BITS_PER_S} burst 4mb quantum 200000",
        f"filter add dev lo parent 1: protocol ip prio 1 u32 match ip sport {port} 0xffff flowid 1:20",
    ):
        subprocess.run(["tc", *command.split()], check=True)


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def finished(client: CacheClient, path: str, options: LoadOptions | None = None) -> LoadJob:
    job = wait_load(client, submit_load(client, path, options).id, timeout_s=1800)
    if job.state is not LoadState.SUCCEEDED:
        raise RuntimeError(f"{path}: {job.state.value} {job.message}")
    return job


def fill_bucket(port: int, objects: int) -> int:
    """Bytes in it."""
    import oss2

    bucket = oss2.Bucket(oss2.Auth(ID, SECRET), f"http://127.0.0.1:{port}", BUCKET, is_path_style=True)
    rng = random.Random(1)
    blob = rng.randbytes(1 << 20)
    sizes = [rng.randrange(4_000, 40_000) for _ in range(objects)]

    def put(number: int) -> None:
        bucket.put_object(f"small/{number:06d}", blob[number % 1000 :][: sizes[number]])

    with ThreadPoolExecutor(COPY_THREADS) as threads:
        list(threads.map(put, range(objects)))
    return sum(sizes)


def copy_bucket(port: int, target: Path) -> None:
    import oss2

    bucket = oss2.Bucket(oss2.Auth(ID, SECRET), f"http://127.0.0.1:{port}", BUCKET, is_path_style=True)
    target.mkdir()

    def get(key: str) -> None:
        bucket.get_object_to_file(key, str(target / key.rpartition("/")[2]))

    with ThreadPoolExecutor(COPY_THREADS) as threads:
        keys = (found.key for found in oss2.ObjectIteratorV2(bucket, prefix="small/", max_keys=1000))
        list(threads.map(get, keys))


def read_lines(
    port: int, names: list[str], size: int, connections: int, *, kept: Path = Path(os.devnull)
) -> None:
    """As many connections as the load has, each over its part of the files, the bytes thrown away, or kept
    in a directory."""
    step = -(-size * len(names) // connections)

    def read(number: int) -> None:
        start, stop = number * step, min((number + 1) * step, size * len(names))
        buffer = memoryview(bytearray(1 << 20))
        while start < stop:
            name, at = names[start // size], start % size
            end = min(at + stop - start, size)
            place = kept / f"{start}.part" if kept.is_dir() else kept
            with socket.create_connection(("127.0.0.1", port)) as line, place.open("wb", buffering=0) as out:
                line.sendall(
                    f"GET /{name} HTTP/1.0\r\nHost: x\r\nRange: bytes={at}-{end - 1}\r\n\r\n".encode()
                )
                while count := line.recv_into(buffer):
                    out.write(buffer[:count])
            start += end - at

    with ThreadPoolExecutor(connections) as threads:
        list(threads.map(read, range(connections)))


def sent_bytes(log: Path) -> int:
    total = 0
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry["method"] == "GET" and entry["key"] and not entry["query"]:
            total += entry["bytes_sent"]
    return total


def measure(options: argparse.Namespace, home: Path) -> Result:
    result = Result(objects=options.objects, big_bytes=options.big * options.big_bytes)
    files = home / "files"
    (files / "big").mkdir(parents=True)
    block = random.Random(2).randbytes(64 << 20)
    for number in range(options.big):
        with (files / "big" / f"{number}.bin").open("wb") as out:
            for _ in range(options.big_bytes // len(block)):
                out.write(block)
    (files / "hot.bin").write_bytes(block[:HOT_BYTES])
    with (
        oss_store(home) as (oss_port, log),
        EtcdServer() as etcd,
        nginx(files, home / "nginx") as web,
    ):
        keys = {"access_key_id": "env:BENCH_ID", "access_key_secret": "env:BENCH_SECRET"}
        mounts: dict[str, Any] = {
            "oss": {
                "url": f"oss://127.0.0.1:{oss_port}/{BUCKET}",
                "options": {**keys, "region": "cn-hangzhou", "use_ssl": False, "signature": "v1"},
            },
            "web": web.url,
        }

        def workers(name: str) -> LocalCluster:
            return LocalCluster(
                options.workers,
                mounts=mounts,
                etcd=etcd,
                directory=home / name,
                cluster_name=name,
                environment={"BENCH_ID": ID, "BENCH_SECRET": SECRET},
                capacity_bytes=2 * (result.big_bytes + (1 << 30)),
                load_threads=LOAD_THREADS,
                page_store=options.page_store,
            )

        cluster = workers("cluster")
        with cluster, CacheClient(ClientConfig.load(env={}, **cluster.client_options)) as client:
            measure_small(result, client, cluster, (oss_port, log), home, idle_s=options.idle)
            measure_others(result, cluster, workers("others"), options.workers)
            measure_big(result, client, cluster, web.port, options)
            measure_stop(result, client)
    return result


def measure_small(
    result: Result,
    client: CacheClient,
    cluster: LocalCluster,
    oss: tuple[int, Path],
    home: Path,
    *,
    idle_s: float,
) -> None:
    port, log = oss
    size = fill_bucket(port, result.objects)
    finished(client, "/web/hot.bin")
    time.sleep(FETCHING_RESTS_S)
    _, latencies = felt(cluster, lambda: time.sleep(idle_s))
    result.idle_reads = len(latencies)
    result.idle_p50_ms, result.idle_p99_ms = p50_p99(latencies)
    copied, latencies = felt(cluster, lambda: copy_bucket(port, home / "copy"))
    _, result.copy_p99_ms = p50_p99(latencies)
    shutil.rmtree(home / "copy")
    before = sent_bytes(log)
    loaded, latencies = felt(cluster, lambda: finished(client, "/oss/small"))
    result.small_p50_ms, result.small_p99_ms = p50_p99(latencies)
    result.copy_per_s, result.load_per_s = result.objects / copied, result.objects / loaded
    result.small_ratio = copied / loaded
    result.small_fetched_ratio = (sent_bytes(log) - before) / size


def measure_others(result: Result, cluster: LocalCluster, others: LocalCluster, count: int) -> None:
    """Half of the objects, which is enough for a hundredth."""
    half = LoadOptions(file_filter="[02468]$", requests_per_s=result.load_per_s / count)
    with others, CacheClient(ClientConfig.load(env={}, **others.client_options)) as client:
        _, latencies = felt(cluster, lambda: finished(client, "/oss/small", half))
    _, result.others_p99_ms = p50_p99(latencies)


def measure_big(
    result: Result, client: CacheClient, cluster: LocalCluster, port: int, options: argparse.Namespace
) -> None:
    names = [f"big/{number}.bin" for number in range(options.big)]
    connections = options.workers * LOAD_THREADS
    slow_down(port)
    line, latencies = felt(cluster, lambda: read_lines(port, names, options.big_bytes, connections))
    _, result.line_p99_ms = p50_p99(latencies)
    kept = Path(tempfile.mkdtemp(prefix="kept-", dir=cluster.directory))
    some = names[: -(-len(names) // 2)]
    _, latencies = felt(cluster, lambda: read_lines(port, some, options.big_bytes, connections, kept=kept))
    _, result.kept_p99_ms = p50_p99(latencies)
    shutil.rmtree(kept)
    job: list[LoadJob] = []
    loaded, latencies = felt(cluster, lambda: job.append(finished(client, "/web/big")))
    result.big_p50_ms, result.big_p99_ms = p50_p99(latencies)
    result.line_bytes_per_s = result.big_bytes / line
    result.big_bytes_per_s = result.big_bytes / loaded
    result.big_ratio = line / loaded
    receipt = job[0].receipt
    assert receipt is not None
    result.big_fetched_ratio = receipt.bytes_fetched / result.big_bytes
    result.p99_ratio = max(result.small_p99_ms, result.big_p99_ms) / result.idle_p99_ms


def measure_stop(result: Result, client: CacheClient) -> None:
    free(client, "/web/big", recursive=True)
    job = submit_load(client, "/web/big")
    time.sleep(1)
    result.stop_s = timed(lambda: (stop_load(client, job.id), wait_load(client, job.id, timeout_s=60)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prewarm", description=__doc__)
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--big", type=int, default=4, help="large files")
    parser.add_argument("--big-bytes", type=parse_bytes, default=1 << 30)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--idle", type=float, default=IDLE_S, metavar="SECONDS", help="of quiet reading")
    parser.add_argument("--page-store", choices=("auto", "files", "segments"), default="auto")
    parser.add_argument(
        "--quick", action="store_true", help="1000 objects, two files of 64 MiB, 2 s of quiet"
    )
    parser.add_argument("--home", metavar="DIR", help="for stores and pages; default: a temporary directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the result as JSON")
    options = parser.parse_args()
    enter_namespace(sys.argv[1:])
    if options.quick:
        options.objects, options.big, options.big_bytes, options.idle = 1000, 2, 64 << 20, 2.0
    with tempfile.TemporaryDirectory(prefix="kara-prewarm-", dir=options.home) as home:
        result = measure(options, Path(home))
    text = json.dumps(asdict(result), indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
