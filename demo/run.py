"""The main job on one machine: etcd, two stores, three workers, real files read twice, a worker killed.

Exits 0 only if every byte was right, the second pass cost the stores nothing, and the kill was survived.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import oss2
import pandas as pd
from datasets import prepare
from tqdm import tqdm

from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer

KEY_ID, KEY_SECRET, BUCKET = "demo-key", "demo-secret-0123456789", "demo"
CHUNK = 1 << 20


@dataclass
class Phase:
    name: str
    size: int
    seconds: float
    store_gets: int
    store_bytes: int
    hits: int
    reads: int

    def row(self) -> str:
        ratio = f"{self.hits / self.reads:6.1%}" if self.reads else "     -"
        rate = self.size / self.seconds / 1e6
        return (
            f"{self.name:36} {self.size / 1e6:8.1f} MB {self.seconds:7.2f} s {rate:8.0f} MB/s"
            f"   hit ratio {ratio}   store GETs {self.store_gets:4}  {self.store_bytes / 1e6:8.1f} MB"
        )


class Stores:
    """The OSS server and the HTTP server, each in a process of its own, and what their own logs say."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path, data: dict[str, Path]) -> None:
        self._log = directory / "oss.log"
        oss = self._spawn(
            stack,
            ["-m", "kara_worker.testing.oss_server", "--key-id", KEY_ID, "--key-secret", KEY_SECRET],
            ["--bucket", BUCKET, "--directory", str(directory / "oss"), "--log", str(self._log)],
        )
        self.oss_host = _line(oss).split("://")[1]
        bucket = oss2.Bucket(
            oss2.make_auth(KEY_ID, KEY_SECRET, oss2.AUTH_VERSION_4),
            f"http://{self.oss_host}",
            BUCKET,
            region="cn-hangzhou",
        )
        for name, path in tqdm(data.items(), desc="upload to OSS", unit="file"):
            bucket.put_object_from_file(f"train/{name}", str(path))
        origin = Path(__file__).with_name("origin.py")
        self._http = self._spawn(stack, [str(origin)], [str(data["flights.csv"]), str(data["china.jpg"])])
        self.http_url = _line(self._http)

    def _spawn(
        self, stack: contextlib.ExitStack, program: list[str], arguments: list[str]
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        return process

    def data_gets(self) -> tuple[int, int]:
        """(GETs of objects, bytes of them) since the start, from the servers' own logs."""
        records = [json.loads(line) for line in self._log.read_text().splitlines()]
        gets = [r for r in records if r["method"] == "GET" and r["key"]]
        assert self._http.stdin is not None
        self._http.stdin.write("\n")
        self._http.stdin.flush()
        http = json.loads(_line(self._http))
        return len(gets) + http["gets"], sum(r["bytes_sent"] for r in gets) + http["bytes"]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip().removeprefix("ready ")


class Demo:
    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        step("real files from packages: photographs, flights as CSV and Parquet, a 200 MB tar of them")
        self.data = prepare(directory / "data")
        sizes = {name: path.stat().st_size for name, path in self.data.items()}
        self.distinct = (
            sum(sizes.values()) + sizes["flights.csv"] + sizes["china.jpg"]
        )  # two are in both stores
        self.want = {name: sha256(path.read_bytes()) for name, path in self.data.items()}
        step("an OSS server that checks signatures, an HTTP server, etcd, three workers")
        self.stores = Stores(stack, directory, self.data)
        oss_url = f"oss://{self.stores.oss_host}/{BUCKET}/train"
        etcd = stack.enter_context(EtcdServer())
        self.cluster = LocalCluster(
            3,
            etcd=etcd,
            directory=directory / "cluster",
            environment={"DEMO_ID": KEY_ID, "DEMO_SECRET": KEY_SECRET},
            lease_ttl_s=2,
            mounts={
                "train": {
                    "url": oss_url,
                    "options": {
                        "access_key_id": "env:DEMO_ID",
                        "access_key_secret": "env:DEMO_SECRET",
                        "use_ssl": False,
                        "region": "cn-hangzhou",
                    },
                },
                "web": f"{self.stores.http_url}/data",
            },
        )
        stack.enter_context(self.cluster)
        self.kara = self.cluster.client_options
        self.oss = f"kara::{oss_url}"
        self.web = f"kara::{self.stores.http_url}/data"
        self.phases: list[Phase] = []
        self._metrics: dict[int, dict[str, float]] = {}  # by pid
        stack.callback(self._close_clients)

    @contextlib.contextmanager
    def phase(self, name: str, size: int) -> Iterator[None]:
        gets, sent = self.stores.data_gets()
        hits, reads = self._pages()
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        more_gets, more_sent = self.stores.data_gets()
        more_hits, more_reads = self._pages()
        done = Phase(
            name, size, seconds, more_gets - gets, more_sent - sent, more_hits - hits, more_reads - reads
        )
        self.phases.append(done)
        print(done.row())

    def _pages(self) -> tuple[int, int]:
        """(hits, reads) of all workers, the dead one's as they were when it was seen last."""
        for worker in self.cluster.workers:
            if worker.alive:
                self._metrics[worker.pid] = worker.metrics()
        found = {"hit": 0.0, "miss": 0.0, "join": 0.0}
        for samples in self._metrics.values():
            for result in found:
                found[result] += samples[f'kara_worker_page_reads_total{{result="{result}"}}']
        return int(found["hit"]), int(sum(found.values()))

    def read_all(self, name: str) -> None:
        """Every file, with the libraries people use."""
        with self.phase(name, self.distinct):
            storage_options = {"kara": self.kara}
            flights = pd.read_csv(f"{self.web}/flights.csv", storage_options=storage_options)
            columns = pd.read_parquet(f"{self.oss}/flights.parquet", storage_options=storage_options)
            check("flights", len(flights) == len(columns) == 336_776)
            for url in (f"{self.oss}/china.jpg", f"{self.oss}/flower.jpg", f"{self.web}/china.jpg"):
                check(url, sha256(self._bytes(url)) == self.want[url.rsplit("/", 1)[1]])
            for file in ("flights.csv", "flights.parquet", "epoch.tar"):
                check(file, self._stream(f"{self.oss}/{file}") == self.want[file])

    def kill_one(self) -> None:
        """SIGKILL for the worker that owns the next part of a file, in the middle of reading it."""
        size = self.data["epoch.tar"].stat().st_size
        url = f"{self.oss}/epoch.tar"
        # as from another host: on this one, a reader goes on with the descriptors it was passed
        remote = {**self.kara, "local_reads": False}
        fs = fsspec.core.url_to_fs(url, kara=remote)[0]
        client = fs.client
        path = client.resolve(url.removeprefix("kara::"))
        victims: list[str] = []

        def kill(position: int) -> None:
            if position > size // 3 and not victims:
                owners = client.explain(path)["owners"]
                owner = owners[position // (64 << 20) + 1]["workers"][0]
                victim = self.cluster.worker(owner)
                os.kill(victim.pid, signal.SIGKILL)
                victims.append(owner)
                print(f"  SIGKILL for worker {owner} at byte {position} of {size}")

        before = client.metrics.fallbacks
        with self.phase("a worker killed while a file is read", size):
            check("bytes after the kill", self._stream(url, kill, remote) == self.want["epoch.tar"])
        after = client.metrics.fallbacks
        detours = {reason: count - before.get(reason, 0) for reason, count in after.items()}
        print(f"  detours by reason: {detours}; failed reads: 0")
        check("a worker was killed", len(victims) == 1)
        check("the detour was counted", sum(detours.values()) > 0)
        fs.close()

    def _bytes(self, url: str) -> bytes:
        with fsspec.open(url, kara=self.kara) as file:
            return bytes(file.read())

    def _stream(
        self, url: str, watch: Callable[[int], None] | None = None, kara: dict[str, Any] | None = None
    ) -> str:
        digest, position = hashlib.sha256(), 0
        with fsspec.open(url, kara=kara or self.kara) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                position += len(chunk)
                if watch is not None:
                    watch(position)
        return digest.hexdigest()

    def _close_clients(self) -> None:
        for url in (self.oss, self.web):
            fsspec.core.url_to_fs(url, kara=self.kara)[0].close()

    def show(self) -> None:
        step("what it was")
        for phase in self.phases:
            print(phase.row())
        cold, warm = self.phases[0], self.phases[1]
        check("the second pass asked the stores for nothing", warm.store_gets == 0)
        check("the first pass fetched nothing twice", cold.store_bytes <= 1.02 * self.distinct)
        print(f"SHA-256 of all {len(self.want)} files identical in every pass.")


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def check(what: str, good: bool) -> None:
    if not good:
        raise SystemExit(f"FAILED: {what}")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kara-demo-")))
        demo = Demo(stack, directory)
        step("first pass: everything comes from the stores")
        demo.read_all("first pass (cold)")
        step("second pass: everything comes from the workers")
        demo.read_all("second pass (warm)")
        step("a worker dies")
        demo.kill_one()
        demo.show()
    print(f"\nDemo passed in {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
