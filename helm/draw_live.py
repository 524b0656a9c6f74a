"""The pictures of the dashboards in the documents, drawn from a live cluster: four workers with real readers, a load
job, a worker that is restarted and one that is killed. Needs etcd, prometheus and matplotlib.

python helm/draw_live.py docs/images --seconds 240
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fsspec

from kara_worker.testing.cluster import LocalCluster, WorkerProcess, free_ports
from kara_worker.testing.etcd_server import EtcdServer

SHARDS = {"train": 80, "coco": 40}
SHARD_BYTES = 4 << 20
BOARDS = ("cluster", "training")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        place = Path(directory)
        for name, count in SHARDS.items():
            (place / name).mkdir()
            for number in range(count):
                (place / name / f"shard-{number:05d}.tar").write_bytes(os.urandom(SHARD_BYTES))
        ports = free_ports(4)
        with (
            EtcdServer() as etcd,
            LocalCluster(
                4,
                mounts={name: f"file://{place}/{name}" for name in SHARDS},
                etcd=etcd,
                directory=place / "workers",
                each=[{"admin_port": port} for port in ports],
                lease_ttl_s=3,
                cluster_name="vision",
                capacity_bytes="140MiB",
            ) as cluster,
            Prometheus(place, ports) as prometheus,
        ):
            with Readers(cluster):
                _play(cluster, etcd, options.seconds)
            for board in BOARDS:
                _draw(board, prometheus.url, options.out, options.seconds)


def _play(cluster: LocalCluster, etcd: EtcdServer, seconds: float) -> None:
    began = time.monotonic()

    def wait_until(part: float) -> None:
        time.sleep(max(0.0, began + part * seconds - time.monotonic()))

    wait_until(0.25)
    where = {"KARA_ETCD_HOSTS": f"{etcd.host}:{etcd.port}", "KARA_CLUSTER_NAME": "vision"}
    load = [sys.executable, "-m", "kara_cache.cli.main", "load", "/coco", "--watch"]
    subprocess.run(load, env={**os.environ, **where}, check=True, capture_output=True)
    wait_until(0.45)
    _restart(cluster.workers[1])
    wait_until(0.65)
    cluster.workers[3].kill()
    wait_until(0.75)
    cluster.workers[3].start()
    wait_until(1.0)


def _restart(worker: WorkerProcess) -> None:
    worker.stop()
    worker.start()


def _draw(board: str, prometheus: str, out: Path, seconds: float) -> None:
    program, picture = Path(__file__).parent / "draw_panels.py", out / f"dashboard-{board}.png"
    minutes = str(seconds / 60)
    subprocess.run([sys.executable, program, board, prometheus, picture, "--minutes", minutes], check=True)


class Readers:
    """Two that read whole shards from front to back, mostly the same few, and now and then a piece of one."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._fs = fsspec.filesystem("kara", **cluster.client_options, local_reads=False)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(2)]

    def _read(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self._stop.wait(0.05):
            name = dice.choices(list(SHARDS), weights=(5, 1))[0]
            number = min(int(dice.expovariate(0.05)), SHARDS[name] - 1)
            with self._fs.open(f"kara://{name}/shard-{number:05d}.tar") as file:
                while file.read(256 << 10):
                    pass
                file.seek(dice.randrange(SHARD_BYTES - 4096))
                file.read(4096)

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Prometheus:
    """Scrapes every second, with the recording rules of the chart."""

    def __init__(self, place: Path, ports: list[int]) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        rules = Path(__file__).parent / "kara-cache" / "files" / "rules.yaml"
        shutil.copy(rules, place / "rules.yaml")
        targets = [
            {"targets": [f"127.0.0.1:{admin}"], "labels": {"instance": f"worker-{number}"}}
            for number, admin in enumerate(ports)
        ]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "kara-worker", "static_configs": targets}],
        }
        (place / "prometheus.json").write_text(json.dumps(config))  # which is YAML, too
        self._command = [
            "prometheus",
            f"--config.file={place}/prometheus.json",
            f"--storage.tsdb.path={place}/metrics",
            f"--web.listen-address=127.0.0.1:{port}",
        ]

    def __enter__(self) -> Prometheus:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main()
