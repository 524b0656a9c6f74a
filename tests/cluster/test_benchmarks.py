"""`make bench`: a small piece of it runs, its report says what was measured and what was not, and why."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import services

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`benchmarks` is no package that is installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.etcd
def test_a_case_runs_and_is_reported(tmp_path: Path) -> None:
    services.require("etcd")
    services.require("nginx")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--strict", "--only", "growth-conn"]
    command += ["--home", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "latest.json").read_text())
    assert document["quick"] is True
    assert {row["key"] for row in document["rows"]} == {
        "growth_connections_idle_worker",
        "growth_connections_idle_nginx",
        "growth_connections_rate",
        "control_growth-connections_cold",
        "control_growth-connections_warm",
    }
    text = (out / "latest.md").read_text()
    assert "It measures nothing" in text
    assert "![4 KiB files, requests a second](growth_connections_rate.svg)" in text
    xml.dom.minidom.parse(str(out / "growth_connections_rate.svg"))
    assert list(tmp_path.glob("kara-bench-*")) == []


def test_clients_of_peers_need_nothing_of_ours() -> None:
    """They run in environments that have a published client and nothing else."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib import import_module
from benchmarks.peers.all import READERS
print(*(peer.key for peer in READERS if hasattr(import_module(peer.module), "Reader")))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT)],
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"redis", "memcached", "juicefs", "blockcache", "boto3", "ray"} <= set(done.stdout.split())


def test_readers_are_measured_on_the_bytes_of_a_file(tmp_path: Path, importable: None) -> None:
    from benchmarks.asked_process import AskedError
    from benchmarks.peers.reader_process import ReaderProcess

    data = bytes(range(256)) * 1024
    (tmp_path / "file").write_bytes(data)
    module, options = "benchmarks.peers.juicefs", {"path": str(tmp_path / "file")}
    with ReaderProcess(Path(sys.executable), module, options, tmp_path / "log") as process:
        from hashlib import sha256

        assert process.prepare(1000, [5, 77]) == sha256(data[5:1005] + data[77:1077]).hexdigest()
        assert process.prepare(0, [0]) == sha256(data).hexdigest()
        found = process.measure(0.01)
        assert found["calls"] >= 3
        assert 0 < found["p50"] <= found["p99"]
    with pytest.raises(AskedError, match="FileNotFoundError"):
        ReaderProcess(Path(sys.executable), module, {"path": str(tmp_path / "none")}, tmp_path / "log")


def test_a_peer_that_cannot_run_here_says_why(importable: None) -> None:
    from benchmarks.peers.memcached import PEER
    from benchmarks.peers.peer import Peer, UnavailableError

    gone = Peer("x", "x", PEER.module, "", PEER.serve, programs={"no-such-program": "no-such-package"})
    with pytest.raises(UnavailableError, match="no-such-package"):
        gone.python()


def test_the_report_names_what_is_behind_and_what_was_not_measured(importable: None) -> None:
    from benchmarks.report import Report
    from benchmarks.table_row import Row, Target

    rows = [
        _row(Row, "peer_redis_4 KiB", "peers", [0.5, 0.4, 0.6], Target(1.0)),
        _row(Row, "peer_redis_1 MiB", "peers", [2.0], Target(1.0)),
        _row(Row, "server_varnish_4KiB_1", "servers", [1.5], Target(1.0)),
        _row(Row, "host_repeat", "same-host", [2.5], Target(3, "us", at_least=False)),
        _row(Row, "control_x", "peers", [0.0], Target(0, "", at_least=False)),
    ]
    report = Report(rows, {"JuiceFS": "RuntimeError: no /dev/fuse\nhere"}, {"kernel": "6"})
    text = report.markdown()
    assert "| Redis 7, redis-py | **0.50x** behind | - | 2.00x | - |" in text
    assert "- JuiceFS: RuntimeError: no /dev/fuse here" in text
    assert "It measures nothing" not in text
    missed = text.partition("## Where a target is missed")[2].partition("##")[0]
    assert "peer_redis_4 KiB (0.50x)" in missed
    assert "host_repeat" not in missed
    assert [row.key for row in report.controls] == ["control_x"]
    xml.dom.minidom.parseString(report.drawings()["peers.svg"])
    assert json.loads(json.dumps(report.document()))["not_measured"].keys() == {"JuiceFS"}


def test_a_run_that_shows_nothing_says_so(importable: None) -> None:
    from benchmarks.report import Report
    from benchmarks.table_row import Row, Target

    measured = _row(Row, "churn_restart", "page-churn", [0.5], Target(0.3, "s", at_least=False))
    kept = _row(Row, "control_churn", "page-churn", [1.0], Target(1.0))
    lost = _row(Row, "control_churn", "page-churn", [0.5], Target(1.0))
    assert Report([measured, kept], {}, {}).problems() == []  # a target may be missed
    assert "case page-churn has no control" in Report([measured], {}, {}).problems()
    assert Report([measured, lost], {}, {}).problems() == ["a control failed: what control_churn: 0.50x"]
    failed = Report([measured, kept], {"case rows": "RuntimeError: no"}, {}, failed=["rows"])
    assert failed.problems() == ["case rows failed: RuntimeError: no"]


def test_what_is_missed_in_the_published_report_has_a_reason() -> None:
    """A row of `make bench` meets its target, or benchmarks/why.py says why it does not."""
    published = json.loads((ROOT / "docs" / "benchmarks" / "latest.json").read_text())
    code = (
        "import json, sys; from benchmarks.why import why; print(json.dumps([why(k) for k in sys.argv[1:]]))"
    )
    missed = [row["key"] for row in published["rows"] if row["verdict"] == "MISSED"]
    done = subprocess.run(
        [sys.executable, "-c", code, *missed],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        text=True,
        check=True,
    )
    reasons = dict(zip(missed, json.loads(done.stdout), strict=True))
    assert [key for key, reason in reasons.items() if reason == "not explained yet"] == []
    assert "not explained" not in (ROOT / "docs" / "benchmarks" / "latest.md").read_text()
    assert all(row["verdict"] != "MISSED" for row in published["rows"] if row["key"].startswith("control"))


def _row(kind: Any, key: str, case: str, values: list[float], target: Any) -> Any:
    return kind(key, f"what {key}", values, target, case=case)


def test_a_reason_is_found_by_the_beginning_of_a_key(importable: None) -> None:
    from benchmarks.why import WHY, why

    assert why("peer_redis_4 KiB") == WHY["peer_redis"]
    assert why("peer_blockcache_whole file") != why("peer_blockcache_4 KiB") == WHY["peer_blockcache"]
    assert why("server_varnish_4KiB_16") == WHY["server_varnish"]
    assert why("rows_append_lmdb") == WHY["rows_append"] != why("rows_shuffled_limit")
    assert why("churn_65536") != why("churn_index") == why("nobody") == "not explained yet"


def test_cases_are_chosen_by_the_beginnings_of_their_names(importable: None) -> None:
    from benchmarks import __main__ as program

    assert program._chosen(["growth-p,corrupt"]) == ["corrupt", "growth-pages"]
    assert all(name.startswith("growth") for name in program._chosen(["growth"]))
    assert program._chosen(None) == list(program.CASES)
    with pytest.raises(SystemExit, match="no case begins with 'nothing'"):
        program._chosen(["peers,nothing"])
