"""Rules and dashboards: well formed, about metrics that exist, and with data from a live cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
import services
from pages_on_disk import pages_on_disk

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_worker.testing.cluster import LocalCluster

yaml = pytest.importorskip("yaml")
promql_parser = pytest.importorskip("promql_parser")

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ROOT / "helm" / "kara-cache" / "files"
RULES = FILES / "rules.yaml"
DASHBOARDS = sorted((FILES / "dashboards").glob("*.json"))
WAIT_S = 60.0
_NOT_OURS = {"up"}
# Only counted when something goes wrong, or when a feature is used that this test does not use.
_MAY_BE_EMPTY = {"kara_load_", "kara_worker_load_"}


def queries() -> list[tuple[str, str]]:
    """Where each stands, and what it asks."""
    return [
        (f"{path.stem}: {panel['title']}, {target['refId']}", concrete(target["expr"]))
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def concrete(expression: str) -> str:
    for name, value in {
        "$__rate_interval": "30s", "$__range": "1m", "$price": "0.08", "$worker": ".*", "$mount": ".*",
    }.items():  # fmt: skip
        expression = expression.replace(name, value)
    return expression


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_dashboards_are_made_from_their_source() -> None:
    subprocess.run([sys.executable, ROOT / "helm" / "dashboards.py", "--check"], check=True, timeout=60)


@pytest.mark.parametrize(("where", "expression"), queries(), ids=lambda value: str(value)[:60])
def test_every_query_is_promql(where: str, expression: str) -> None:
    promql_parser.parse(expression)


def test_panels_do_not_overlap_and_have_ids() -> None:
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells = [
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(set(cells)) == len(cells), path
        assert max(x for x, _ in cells) == 23


def test_every_alert_has_a_runbook() -> None:
    alerts = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules() if "alert" in rule}
    runbooks = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert alerts == {name: f"RUNBOOK_URL/{name}.md" for name in runbooks}


def test_rules_hold_their_cases() -> None:
    tool = shutil.which("promtool")
    if tool is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed")
    for arguments in (
        ["check", "rules", RULES],
        ["test", "rules", ROOT / "tests" / "deploy" / "rules_test.yaml"],
    ):
        done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = (ROOT / "tests" / "deploy" / "rules_test.yaml").read_text()
    for rule in rules():
        assert "alert" not in rule or tested.count(f"alertname: {rule['alert']}") >= 2


class Prometheus:
    """A real one, scraping every second, with the alerts' patience taken out."""

    def __init__(self, place: Path, targets: list[str]) -> None:
        program = shutil.which("prometheus")
        if program is None:
            if os.environ.get("CI"):
                pytest.fail("prometheus is not installed")
            pytest.skip("prometheus is not installed")
        impatient = yaml.safe_load(RULES.read_text())
        for group in impatient["groups"]:
            for rule in group["rules"]:
                rule.pop("for", None)
        (place / "rules.yaml").write_text(yaml.safe_dump(impatient))
        (place / "prometheus.yaml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": ["rules.yaml"],
                    "scrape_configs": [{"job_name": "kara-worker", "static_configs": [{"targets": targets}]}],
                }
            )
        )
        self.port = services.free_port()
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={place}/prometheus.yaml",
                f"--storage.tsdb.path={place}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        where = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(where, timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def alerts(self) -> set[str]:
        return {row["metric"]["alertname"] for row in self.query('ALERTS{alertstate="firing"}')}

    def wait(self, what: str, condition: Any) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
            time.sleep(0.2)

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)


def test_every_panel_has_data_and_alerts_name_their_cause(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for number in range(8):
        (store / f"{number}.bin").write_bytes(os.urandom(3 << 20))
    mounts = {"data": f"file://{store}"}
    with etcd_servers.server() as etcd, LocalCluster(3, mounts=mounts, etcd=etcd) as cluster:
        prometheus = Prometheus(tmp_path, [f"127.0.0.1:{worker.admin_port}" for worker in cluster.workers])
        client = CacheClient(ClientConfig.load(env={}, **cluster.client_options, local_reads=False))
        near = CacheClient(ClientConfig.load(env={}, **cluster.client_options))
        try:
            empty = dict(queries())

            def all_have_data() -> bool:
                read_everything(client)
                read_everything(near)
                for where, expression in list(empty.items()):
                    if prometheus.query(expression):
                        del empty[where]
                return not {where for where, text in empty.items() if not _may_be_empty(text)}

            try:
                prometheus.wait("data in every panel", all_have_data)
            except AssertionError:
                pytest.fail(f"panels without data: {sorted(empty)}")
            for rule in rules():
                if "record" in rule:

                    def is_recorded(name: str = rule["record"]) -> bool:
                        read_everything(client)
                        return bool(prometheus.query(name))

                    prometheus.wait(rule["record"], is_recorded)
            # A worker that a busy machine kept from answering one scrape counts as lost until the next.
            prometheus.wait("no alert", lambda: prometheus.alerts() == set())
            assert exported(cluster) - documented() == set()

            pages = [page for worker in cluster.workers for page in pages_on_disk(worker.page_dir)]
            page = next(page for page in pages if page.header.length == 1 << 20)
            page.flip_data(-1000)

            def corrupt_is_known() -> bool:
                read_everything(client)
                return prometheus.alerts() == {"KaraCorruptPages"}

            prometheus.wait("an alert for the flipped bit, and for nothing else", corrupt_is_known)

            next(worker for worker in cluster.workers if worker.page_dir not in page.path.parents).kill()

            def lost_is_known() -> bool:
                read_everything(client)
                return prometheus.alerts() >= {"KaraCorruptPages", "KaraWorkerLost"}

            prometheus.wait("an alert for the dead worker", lost_is_known)
            assert prometheus.alerts() <= {"KaraCorruptPages", "KaraWorkerLost", "KaraFallbackBurst"}
        finally:
            client.close()
            near.close()
            prometheus.close()


def _may_be_empty(expression: str) -> bool:
    return any(name in expression for name in _MAY_BE_EMPTY)


def read_everything(client: CacheClient) -> None:
    for entry in client.list("/data"):
        info = client.info(entry.path)
        data = bytearray(info.size)
        assert client.read_into(info, 0, data) == info.size
        client.read_ranges([(info, 0, 1000), (info, 5000, 1000)])
        reader = client.open_reader(info)
        try:
            for start in range(0, info.size, 256 << 10):
                reader.read_at(start, 256 << 10)
        finally:
            reader.close()


def exported(cluster: LocalCluster) -> set[str]:
    """Families by the names that samples have, histograms by their own."""
    names = {name.partition("{")[0] for worker in cluster.workers for name in worker.metrics()}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if not name.endswith("_created")}


def documented() -> set[str]:
    text = (ROOT / "docs" / "metrics.md").read_text()
    return set(re.findall(r"^\| `((?:kara|alluxio)_\w+)` \|", text, flags=re.M))


def test_documented_metrics_are_those_of_rules_and_dashboards() -> None:
    text = " ".join(expression for _, expression in queries()) + RULES.read_text()
    named = re.findall(r"\b(?:kara|alluxio)_(?:worker|client|load|http)_\w+", text)
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= documented()
