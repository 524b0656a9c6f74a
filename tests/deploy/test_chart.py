"""The chart, rendered by helm 3 and 4, against the schemas of Kubernetes and our own configuration."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helm_programs import helm

from kara_cache.config import ClientConfig
from kara_cache.layered import keys
from kara_cache.quantity import parse_bytes
from kara_worker.alluxio_config import LISTENERS
from kara_worker.config import WorkerConfig

yaml = pytest.importorskip("yaml")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm" / "kara-cache"
KUBERNETES = ("1.29", "1.33", "1.37")
FOREIGN = {
    "PodMonitor",
    "ServiceMonitor",
    "PrometheusRule",
    "Certificate",
}  # of operators: no schema is published
# Keys of [worker] that other values of the chart decide.
BY_CHART = {
    "host": "always 0.0.0.0",
    "advertise_host": "the pod's address",
    "admin_host": "always 0.0.0.0",
    "admin_anonymous": "always, a scraper has no token",
    "socket_dir": "worker.nodeSocket",
    "page_dirs": "worker.cache",
    "secret": "auth",
    "etcd_hosts": "etcd.hosts, etcd.trial",
    "etcd_port": "in etcd.hosts",
    "etcd_username": "etcd.existingSecret",
    "etcd_password": "etcd.existingSecret",
    "etcd_tls_ca": "etcd.tlsSecret",
    "etcd_tls_cert": "etcd.tlsSecret",
    "etcd_tls_key": "etcd.tlsSecret",
    "etcd_tls_verify_hostname": "members have names",
    "tls_cert": "tls",
    "tls_key": "tls",
    "tls_client_ca": "tls.clientCertificates",
    "tls_peer_ca": "tls",
    "worker_hosts": "members are in etcd",
    "alluxio_host": "always 0.0.0.0 where a listener is on",
    "alluxio_s3_keys": "s3Keys",
    "mounts": "mounts",
    "private": "never in a cluster",
    "idle_exit_s": "never in a cluster",
}

ETCD: dict[str, Any] = {"etcd": {"hosts": ["etcd-0:2379", "etcd-1:2379"]}}
MOUNTS: dict[str, Any] = {
    "mounts": {
        "train": {
            "url": "oss://oss-cn-hangzhou.aliyuncs.com/bucket/sets",
            "freshness": "immutable",
            "ttl_s": "7d",
            "replicas": 2,
            "read_only": True,
            "credentials": {
                "secretName": "oss",
                "keys": {"access_key_id": "id", "access_key_secret": "secret"},
            },
        },
        "web": {"url": "https://example.com/data", "options": {"timeout_s": 30}},
    }
}
VALUES: dict[str, dict[str, Any]] = {
    "plain": ETCD,
    "mounts": {**ETCD, **MOUNTS},
    "trial": {"etcd": {"trial": {"enabled": True, "storage": "1Gi"}}},
    "statefulset": {
        **ETCD,
        "worker": {"kind": "StatefulSet", "replicas": 5, "cache": {"volumes": 2, "storageClass": "local"}},
    },
    "several workers": {
        **ETCD,
        "worker": {
            "cache": {"hostPaths": ["/ssd0/kara", "/ssd1/kara"]},
            "config": {"workers": 2, "page_bytes": "4MiB", "guard": False, "high_watermark": 0.97},
            "nodeSocket": {"enabled": True},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "priorityClassName": "high",
            "nodeSelector": {"disk": "ssd"},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {},
                }
            ],
        },
    },
    "tls": {**ETCD, **MOUNTS, "tls": {"enabled": True, "existingSecret": "pem", "clientCertificates": True}},
    "cert-manager": {
        **ETCD,
        "tls": {
            "enabled": True,
            "certManager": {"enabled": True, "issuerRef": {"name": "ca", "kind": "Issuer"}},
        },
    },
    "closed": {
        "etcd": {"hosts": ["etcd:2379"], "existingSecret": "etcd-user", "tlsSecret": "etcd-tls"},
        "auth": {"existingSecret": "shared", "key": "token"},
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "train"}}}],
        },
        "podDisruptionBudget": {"maxUnavailable": "10%"},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
        "image": {"pullSecrets": ["registry"]},
    },
    "monitored": {
        **ETCD,
        "worker": {"config": {"workers": 2}},
        "metrics": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "serviceMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "annotations": {"folder": "kara"}},
        },
    },
    "existing clients": {
        **ETCD,
        **MOUNTS,
        "networkPolicy": {"enabled": True},
        "s3Keys": {"existingSecret": "s3"},
        "worker": {
            "config": {
                "workers": 2,
                "alluxio_list_port": 28090,
                "alluxio_dict_port": 28190,
                "alluxio_data_port": 29998,
                "alluxio_anonymous": ["list", "dict"],
                "load_bandwidth_bytes_per_s": "200MB",
            }
        },
    },
    "loads": {
        **ETCD,
        **MOUNTS,
        "loads": [
            {
                "name": "once",
                "path": "/train/imagenet",
                "replicas": 2,
                "bandwidth": "200MB/s",
                "args": ["--verify"],
            },
            {"name": "hooked", "path": "/train/small", "hook": True},
            {"name": "nightly", "path": "/web", "schedule": "0 3 * * *"},
        ],
    },
}


@pytest.fixture(params=["v3", "v4"])
def helm_program(request: pytest.FixtureRequest) -> Path:
    return helm(request.param)


def run(program: Path, command: str, values: dict[str, Any], place: Path, *arguments: str) -> Any:
    file = place / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    home = {"HOME": str(place), "PATH": os.environ["PATH"]}
    words = [str(program), *command.split(), str(CHART), "--values", str(file), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=home)


def rendered(program: Path, values: dict[str, Any], place: Path, *arguments: str) -> list[dict[str, Any]]:
    done = run(program, "template release", values, place, "--namespace", "ml", *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    names = [d["metadata"]["name"] for d in documents if d["kind"] == kind]
    found = [d for d in documents if d["kind"] == kind and name in d["metadata"]["name"]]
    if name in names:
        found = [d for d in found if d["metadata"]["name"] == name]
    assert len(found) == 1, [(d["kind"], d["metadata"]["name"]) for d in documents]
    return found[0]


def worker(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (
        d
        for d in documents
        if d["kind"] in ("DaemonSet", "StatefulSet")
        and d["metadata"]["labels"].get("app.kubernetes.io/component") == "worker"
    )
    return dict(found)


@pytest.mark.parametrize("name", VALUES)
def test_renders_what_kubernetes_takes(name: str, helm_program: Path, tmp_path: Path) -> None:
    linted = run(helm_program, "lint --strict", VALUES[name], tmp_path)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    for document in rendered(helm_program, VALUES[name], tmp_path):
        if document["kind"] not in FOREIGN:
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_every_container_is_confined(name: str, tmp_path: Path) -> None:
    for document in rendered(helm("v3"), VALUES[name], tmp_path):
        for pod in pods(document):
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                security = container["securityContext"]
                assert security["readOnlyRootFilesystem"] is True
                assert security["allowPrivilegeEscalation"] is False
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert "limits" in container["resources"]
            assert pod["securityContext"]["runAsNonRoot"] is True


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if document["kind"] == "Pod":
        yield document["spec"]
    elif document["kind"] == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    elif document["kind"] in ("Job", "DaemonSet", "StatefulSet"):
        yield document["spec"]["template"]["spec"]


def configuration(documents: list[dict[str, Any]], place: Path, variables: dict[str, str]) -> WorkerConfig:
    """The worker's own reading of what the chart wrote, with the pod's directories below `place`."""
    text = one(documents, "ConfigMap", "release-kara-cache")["data"]["kara.toml"]
    for directory in ("/etc/kara", "/var/cache/kara", "/run/kara"):
        text = text.replace(f'"{directory}', f'"{place}{directory}').replace(
            f"file:{directory}", f"file:{place}{directory}"
        )
    (place / "kara.toml").write_text(text)
    pod = worker(documents)["spec"]["template"]["spec"]
    for volume in pod["containers"][0]["volumeMounts"]:
        Path(f"{place}{volume['mountPath']}").mkdir(parents=True, exist_ok=True)
    for key in ("secret", "token"):
        (place / "etc/kara/auth" / key).write_text("x" * 48)
    if (place / "etc/kara/s3").exists():
        (place / "etc/kara/s3/keys").write_text("reader:a-long-secret:read\n")
    for name in ("tls/tls.crt", "tls/tls.key", "tls/ca.crt", "etcd-tls/ca.crt", "etcd/password"):
        if (place / "etc/kara" / name).parent.exists():
            (place / "etc/kara" / name).write_text("pem")
    ClientConfig.load(file=place / "kara.toml", env=variables)
    return WorkerConfig.load(file=place / "kara.toml", env=variables, statvfs=_a_large_disk)


def _a_large_disk(_: str) -> os.statvfs_result:
    return os.statvfs_result((4096, 4096, 1 << 40, 1 << 40, 1 << 40, 0, 0, 0, 0, 255))


@pytest.mark.parametrize("name", VALUES)
def test_the_worker_reads_what_the_chart_wrote(name: str, short_place: Path, tmp_path: Path) -> None:
    values = VALUES[name]
    documents = rendered(helm("v4"), values, tmp_path)
    variables = {}
    if values["etcd"].get("existingSecret"):
        variables = {
            "KARA_ETCD_USERNAME": "u",
            "KARA_ETCD_PASSWORD": f"file:{short_place}/etc/kara/etcd/password",
        }
    config = configuration(documents, short_place, variables)
    wanted = values.get("worker", {}).get("config", {})
    assert config.store.capacity_bytes == parse_bytes("100GiB")
    assert config.workers == wanted.get("workers", 1)
    if "page_bytes" in wanted:
        assert config.store.page_bytes == parse_bytes(wanted["page_bytes"])
        assert (config.store.guard, config.store.high_watermark) == (False, 0.97)
    assert sorted(mount.name for mount in config.mounts) == sorted(values.get("mounts", {}))
    pod = worker(documents)["spec"]["template"]["spec"]
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    for number, part in enumerate(config.split()):
        suffix = f"-{number}" if number else ""
        assert (ports[f"data{suffix}"], ports[f"admin{suffix}"]) == (part.listen.port, part.admin.port)
        for name in LISTENERS:
            assert ports.get(f"alluxio-{name}{suffix}") == part.alluxio.port(name)
    ending_s = config.handover.handover_timeout_s + config.life.drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] > ending_s
    if values.get("mounts"):
        (train,) = (mount for mount in config.mounts if mount.name == "train")
        assert (
            train.options["access_key_secret"]
            == f"file:{short_place}/etc/kara/mounts/train/access_key_secret"
        )


@pytest.fixture
def short_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unix sockets allow 107 bytes of path."""
    return tmp_path_factory.mktemp("k")


def test_values_have_every_key_of_the_worker() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    own, by_chart = set(values["worker"]["config"]), set(BY_CHART)
    assert own | by_chart == set(keys(WorkerConfig))
    assert not own & by_chart


def test_mounts_have_every_key_of_a_mount() -> None:
    """As docs/configuration.md lists them; credentials are the chart's own way to options."""
    table = (ROOT / "docs" / "configuration.md").read_text().split("## Mount\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M))
    schema = json.loads((CHART / "values.schema.json").read_text())
    (mount,) = schema["properties"]["mounts"]["patternProperties"].values()
    assert set(mount["properties"]) == documented | {"credentials"}


def test_the_schema_is_of_todays_values() -> None:
    subprocess.run([sys.executable, ROOT / "helm" / "schema.py", "--check"], check=True, timeout=60)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "set etcd.hosts"),
        ({"etcd": {"hosts": ["a"], "trial": {"enabled": True}}}, "both hosts and trial.enabled"),
        ({**ETCD, "worker": {"config": {"capacity": "1GiB"}}}, "capacity"),
        ({**ETCD, "worker": {"kind": "Deployment"}}, "StatefulSet"),
        ({**ETCD, "worker": {"replicas": 0}}, "replicas"),
        ({**ETCD, "worker": {"cache": {"hostPaths": []}}}, "at least one directory"),
        ({**ETCD, "wroker": {}}, "wroker"),
        ({**ETCD, "mounts": {"Up": {"url": "s3://a"}}}, "Up"),
        ({**ETCD, "mounts": {"a": {"freshness": "immutable"}}}, "url"),
        ({**ETCD, "mounts": {"a": {"url": "s3://a", "freshness": "sometimes"}}}, "freshness"),
        ({**ETCD, "tls": {"enabled": True}}, "tls.existingSecret"),
        ({**ETCD, "tls": {"enabled": True, "certManager": {"enabled": True}}}, "issuerRef.name"),
        ({**ETCD, "loads": [{"name": "x", "path": "no-slash"}]}, "path"),
        ({**ETCD, "loads": [{"path": "/a"}]}, "name"),
        ({**ETCD, "image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ],
)
def test_wrong_values_are_refused(
    values: dict[str, Any], words: str, helm_program: Path, tmp_path: Path
) -> None:
    done = run(helm_program, "template release", values, tmp_path)
    assert done.returncode != 0
    assert words in done.stderr


def test_examples_and_the_unit_are_valid() -> None:
    for path in sorted((ROOT / "deploy" / "examples").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            for version in KUBERNETES:
                kubernetes_validate.validate(document, version, strict=True)


def test_a_load_is_a_job_once_and_a_cron_job_by_schedule(tmp_path: Path) -> None:
    documents = rendered(helm("v3"), VALUES["loads"], tmp_path)
    once, nightly = one(documents, "Job", "once"), one(documents, "CronJob", "nightly")
    (pod,) = pods(once)
    assert pod["containers"][0]["args"] == [
        "kara", "load", "/train/imagenet", "--watch", "--replicas", "2", "--bandwidth", "200MB/s", "--verify",
    ]  # fmt: skip
    assert nightly["spec"]["schedule"] == "0 3 * * *"
    assert (
        one(documents, "Job", "hooked")["metadata"]["annotations"]["helm.sh/hook"]
        == "post-install,post-upgrade"
    )


def test_every_address_of_a_rolling_restart_is_named(tmp_path: Path) -> None:
    """One pod at a time, and the next only when the last has its pages again."""
    for name in ("plain", "statefulset"):
        found = worker(rendered(helm("v3"), VALUES[name], tmp_path))
        assert found["spec"]["minReadySeconds"] == 10
        assert found["spec"]["updateStrategy"]["type"] == "RollingUpdate"
