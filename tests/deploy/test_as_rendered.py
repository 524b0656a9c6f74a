"""What the chart starts, started: the worker, a load, a load of nothing, `helm test`, and a training Job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
import services
from test_chart import ROOT, helm, one, pods, rendered, worker, yaml

import kara_cache
from kara_worker.testing.cluster import WorkerProcess, free_ports

FILES = {f"set/{number}.bin": os.urandom(300_000) for number in range(5)}

KINDS = ("worker", "local", "store", "error")


class Deployed:
    """The chart's objects on this machine: its directories are below `place`."""

    def __init__(self, place: Path, documents: list[dict[str, Any]]) -> None:
        self.place = place
        self.documents = documents
        self.worker: WorkerProcess
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

    def with_places(self, text: str) -> str:
        """A manifest's word, with its hosts and directories on this machine."""
        for there, here in (
            ("oss://oss-cn-hangzhou-internal.aliyuncs.com/bucket/train", f"file://{self.place}/store"),
            ("train-0.train", "127.0.0.1"),
            ("/checkpoints", f"{self.place}/checkpoints"),
            ("/etc/kara", f"{self.place}/etc/kara"),
        ):
            text = text.replace(there, here)
        return text

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
        made.worker = process
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


class Rank:
    """One pod of an indexed Job as a process: its command and variables as Kubernetes hands them over."""

    def __init__(self, deployed: Deployed, job: dict[str, Any], index: int, port: int, etcd: str) -> None:
        (container,) = job["spec"]["template"]["spec"]["containers"]
        given = {"KARA_ETCD_HOSTS": etcd}
        variables = {
            v["name"]: given.get(v["name"], deployed.with_places(v["value"])) for v in container["env"]
        }
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["command"]]
        words = [deployed.with_places(word).replace("29500", str(port)) for word in words]
        environment = {
            "PATH": deployed.environment["PATH"],
            "HOME": str(deployed.place),
            "OMP_NUM_THREADS": "1",
            "JOB_COMPLETION_INDEX": str(index),
            "GLOO_SOCKET_IFNAME": "lo",  # a pod has one network, this machine may have several
            **variables,
        }
        self.process = subprocess.Popen(
            words,
            env=environment,
            cwd=ROOT / "examples",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, timeout_s: float) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode, out, err


def training_job() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy/examples/training-job.yaml").read_text())
    return one(list(documents), "Job")


def run_job(deployed: Deployed, job: dict[str, Any]) -> list[tuple[int, str, str]]:
    etcd = re.search(r'etcd_hosts = \["([^"]+)"', deployed.config.read_text())
    assert etcd is not None
    (port,) = free_ports(1)
    ranks = [Rank(deployed, job, index, port, etcd[1]) for index in range(job["spec"]["completions"])]
    return [rank.end(300) for rank in ranks]


@pytest.mark.timeout(400)
def test_the_training_job(deployed: Deployed) -> None:
    services.require_module("torch")
    (deployed.place / "checkpoints").mkdir()
    storage = kara_cache.KaraStorage(f"file://{deployed.place}/store/digits")
    with storage.open("digits", "train", "w", version="1") as rows:
        for number in range(200):
            rows.write({"pixels": [(number * k) % 17 for k in range(64)], "label": number % 10})
    job = training_job()
    (code, out, err), (other_code, other_out, other_err) = run_job(deployed, job)
    assert (code, other_code) == (0, 0), err + other_err
    steps = re.findall(r"^step (\d+) epoch (\d+) loss \d", out, flags=re.M)
    assert steps == [(str(step), str((step - 1) // 4)) for step in range(1, 13)], out
    assert "step" not in other_out, "rank 0 alone prints"
    assert (deployed.place / "checkpoints" / "digits.pt").stat().st_size > 0
    reads = {
        kind: deployed.worker.metrics().get(f'kara_client_reads_total{{kind="{kind}"}}', 0) for kind in KINDS
    }
    assert reads["worker"] + reads["local"] > 0
    assert reads["store"] == reads["error"] == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_job_without_its_data_fails(deployed: Deployed) -> None:
    services.require_module("torch")
    job = training_job()
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    command[:] = [word.replace("/digits", "/absent") for word in command]
    for code, _, err in run_job(deployed, job):
        assert code == 1
        assert "absent" in err
