"""`kara load`, `pin`, `unpin`, `ttl` and `pins` as people and scripts use them; rules reach every worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import etcd_servers
import pytest
from loading import PAGE, WAIT_S, Place, a_data_set, client_of, load_place

from kara_cache.cli.exit_code import ExitCode
from kara_cache.cli.main import main
from kara_cache.errors import ConfigError
from kara_cache.jobs import free, submit_load, wait_load
from kara_cache.load_job import LoadState
from kara_cache.path_rule import PathRule
from kara_cache.rules import list_rules, pin, set_ttl, unpin

pytestmark = [
    pytest.mark.oss,
    pytest.mark.etcd,
    pytest.mark.leaves_running("connections of the module's store"),
]
FILES = a_data_set("commands", small=20)
Kara = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with etcd_servers.server() as etcd, load_place(FILES, workers=2, etcd=etcd) as place:
        yield place


@pytest.fixture
def kara(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kara:
    for key, value in place.cluster.client_options.items():
        monkeypatch.setenv(f"KARA_{key.upper()}", str(value))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        said = capsys.readouterr()
        return int(code), said.out, said.err

    return run


def test_load_and_its_receipt(place: Place, kara: Kara) -> None:
    free(place.client, "/data", recursive=True)
    code, out, err = kara(
        "load", "/data", "--watch", "--bandwidth", "200MB/s", "--requests", "10000", "--verify"
    )
    assert (code, err) == (0, "")
    assert f"pages     {place.pages} of {place.pages} read and compared" in out
    assert "state     SUCCEEDED" in out
    code, out, _ = kara("load", "--receipt", "/data", "--json")
    receipt = json.loads(out)
    assert (code, receipt["pages_present"], receipt["manifest"]) == (0, place.pages, place.manifest())
    code, out, _ = kara("load", "--list", "--json")
    assert [job["path"] for job in json.loads(out)] == ["/data"]
    code, out, _ = kara("load", "--list")
    assert (code, out.split()[:3]) == (0, ["ID", "STATE", "DONE"])
    assert "100%" in out


def test_load_without_waiting_and_stop(place: Place, kara: Kara) -> None:
    free(place.client, "/data", recursive=True)
    code, out, _ = kara("load", "/data/1", "--requests", "1", "--json")
    job: dict[str, Any] = json.loads(out)
    assert (code, job["path"], job["options"]["requests_per_s"]) == (0, "/data/1", 1.0)
    code, out, _ = kara("load", "--stop", job["id"], "--json")
    assert (code, json.loads(out)["id"]) == (0, job["id"])
    assert wait_load(place.client, job["id"], timeout_s=WAIT_S).state is LoadState.STOPPED
    code, out, err = kara("load", "--receipt", "/data/1")
    assert (code, out) == (ExitCode.FAILED, "")
    assert "STOPPED" in err
    code, out, _ = kara("load", "--progress", "/data/1")
    assert code == 0
    assert "STOPPED" in out


def test_what_fails_is_an_exit_code(place: Place, kara: Kara) -> None:
    code, _out, err = kara("load", "/data/nowhere", "--watch")
    assert code == ExitCode.FAILED
    assert "FAILED" in err
    assert kara("load", "/unknown")[0] == ExitCode.NOT_FOUND
    assert kara("load", "--receipt", "/data/never")[0] == ExitCode.NOT_FOUND
    assert kara("load")[0] == ExitCode.USAGE
    assert kara("load", "/data", "--replicas", "0")[0] == ExitCode.USAGE
    with pytest.raises(SystemExit):
        kara("load", "/data", "--bandwidth", "fast")


def test_rules_from_the_terminal(place: Place, kara: Kara) -> None:
    assert kara("pin", "/data/0") == (0, "/data/0: pinned yes, ttl -, priority -\n", "")
    assert kara("ttl", "/data/0", "7d") == (0, "/data/0: pinned yes, ttl 604800s, priority -\n", "")
    _code, out, _ = kara("pins", "--json")
    assert json.loads(out) == [{"path": "/data/0", "pinned": True, "ttl_s": 604800.0, "priority": None}]
    _code, out, _ = kara("priority", "/data/1", "low")
    assert out == "/data/1: pinned no, ttl -, priority low\n"
    assert kara("priority", "/data/1", "high", "--json")[0] == 0
    assert kara("priority", "/data/1", "none")[1] == "/data/1: pinned no, ttl -, priority -\n"
    assert kara("unpin", "/data/0", "--json")[0] == 0
    assert kara("ttl", "/data/0", "none")[0] == 0
    assert kara("pins", "--json")[1] == "[]\n"
    assert kara("pin", "/")[0] == ExitCode.FAILED
    assert kara("pin", "/nowhere/x")[0] == ExitCode.NOT_FOUND


def test_a_pinned_path_survives_pressure_on_every_worker(tmp_path: Path) -> None:
    files = a_data_set("pressure", small=60)
    kept = {name: data for name, data in files.items() if name.startswith("0/f0000")}
    settings = {"capacity_bytes": 25 * (PAGE + 4096), "eviction": "lru", "guard": False}
    with (
        etcd_servers.server() as etcd,
        load_place(files, tmp_path, workers=2, etcd=etcd, **settings) as place,
    ):
        for worker in place.cluster.workers:  # whoever is told
            with client_of(place.cluster, etcd_hosts="", worker_hosts=worker.address) as client:
                for name in kept:
                    pin(client, f"/data/{name}")
        for name in kept:
            job = wait_load(place.client, submit_load(place.client, f"/data/{name}").id, timeout_s=WAIT_S)
            assert job.state is LoadState.SUCCEEDED
        for name in files:
            info = place.client.info(f"/data/{name}")
            assert place.client.read(info, 0, info.size) == files[name]
        assert place.cluster.total("kara_worker_evictions_total") > 0
        place.check_served(kept)


def test_without_etcd_every_worker_is_told_and_remembers(tmp_path: Path) -> None:
    with load_place(FILES, tmp_path, workers=2, peers=True) as place:
        pin(place.client, "/data/0")
        set_ttl(place.client, "/data/1", 3600.0)
        wanted = [PathRule("/data/0", pinned=True), PathRule("/data/1", ttl_s=3600.0)]
        for worker in place.cluster.workers:
            worker.restart()
            with client_of(place.cluster, worker_hosts=worker.address) as client:
                assert list_rules(client) == wanted
        unpin(place.client, "/data/0")
        for worker in place.cluster.workers:
            with client_of(place.cluster, worker_hosts=worker.address) as client:
                assert list_rules(client) == wanted[1:]


def test_a_quota_holds_for_a_load(tmp_path: Path) -> None:
    mount = {"quota_bytes": 10 * (PAGE + 4096)}
    with load_place(FILES, tmp_path, workers=1, mount=mount) as place:
        job = wait_load(place.client, submit_load(place.client, "/data").id, timeout_s=WAIT_S)
        assert job.receipt is not None
        assert (job.state, set(job.receipt.failed)) == (LoadState.FAILED, {"no_room"})
        assert place.cluster.total("kara_worker_page_store_bytes") <= 10 * (PAGE + 4096)
    with pytest.raises((ConfigError, RuntimeError), match="quota_bytes"):
        with load_place(FILES, tmp_path / "2", workers=1, mount={"quota_bytes": 0}):
            pass
