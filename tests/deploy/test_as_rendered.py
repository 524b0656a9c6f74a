"""What the chart starts, started: the worker, a load, a load of nothing, and `helm test`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
import services
from test_chart import helm, one, pods, rendered, worker

from kara_worker.testing.cluster import WorkerProcess

FILES = {f"set/{number}.bin": os.urandom(300_000) for number in range(5)}


class Deployed:
    """The chart's objects on this machine: its directories are below `place`."""

    def __init__(self, place: Path, documents: list[dict[str, Any]]) -> None:
        self.place = place
        self.documents = documents
        text = one(documents, "ConfigMap", "release-kara-cache")["data"]["kara.toml"]
        for directory in ("/etc/kara", "/var/cache/kara", "/run/kara", "/tmp/kara"):
            text = text.replace(f'"{directory}', f'"{place}{directory}')
            text = text.replace(f"file:{directory}", f"file:{place}{directory}")
        self.config = place / "kara.toml"
        self.config.write_text(text)
        (place / "etc/kara/auth").mkdir(parents=True)
        (place / "etc/kara/auth/secret").write_text("a secret that nobody guesses\n")
        bin_dir = Path(sys.executable).parent
        self.environment = {
            "KARA_CONFIG": str(self.config),
            "PATH": f"{bin_dir}:/usr/bin:/bin",
            "HOME": str(place),
        }

    def run(self, pod: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        command = pod["containers"][0]["args"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    place = tmp_path_factory.mktemp("d")
    for name, data in FILES.items():
        (place / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "store" / name).write_bytes(data)
    with etcd_servers.server() as etcd:
        values = {
            "etcd": {"hosts": [f"{etcd.host}:{etcd.port}"]},
            "worker": {
                "config": {
                    "port": services.free_port(),
                    "admin_port": services.free_port(),
                    "capacity_bytes": "64MiB",
                }
            },
            "mounts": {"train": {"url": f"file://{place}/store"}},
            "loads": [
                {
                    "name": "there",
                    "path": "/train/set",
                    "replicas": 1,
                    "bandwidth": "500MB/s",
                    "args": ["--verify"],
                },
                {"name": "absent", "path": "/train/absent"},
            ],
        }
        made = Deployed(place, rendered(helm("v4"), values, place))
        (pod,) = pods(worker(made.documents))
        command = pod["containers"][0]["args"]
        assert command[0] == "kara-worker"
        home = place / "worker"
        home.mkdir()
        process = WorkerProcess(home, command[1:], {**made.environment, "KARA_ADVERTISE_HOST": "127.0.0.1"})
        process.start()
        try:
            yield made
        finally:
            assert process.stop() == 0


def test_a_load_ends_well_when_every_page_is_there(deployed: Deployed) -> None:
    (pod,) = pods(one(deployed.documents, "Job", "there"))
    done = deployed.run(pod)
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in done.stdout + done.stderr


def test_a_load_of_nothing_fails_the_job(deployed: Deployed) -> None:
    (pod,) = pods(one(deployed.documents, "Job", "absent"))
    done = deployed.run(pod)
    assert done.returncode != 0
    assert "/train/absent" in done.stdout + done.stderr


def test_helm_test(deployed: Deployed) -> None:
    (pod,) = pods(one(deployed.documents, "Pod", "test"))
    done = deployed.run(pod)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    assert "active" in done.stdout
