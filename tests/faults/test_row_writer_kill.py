"""SIGKILL of a writer at many points: every row whose `flush` returned is there, and none is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import services
from published import python_with

from kara_worker.testing.oss_server import OssServer

TRIALS = Path(__file__).with_name("row_writer_trials.py")


def outcomes(
    python: str | Path, package: str, url: str, seed: int, trials: int, **environment: str
) -> list[list[str]]:
    done = subprocess.run(
        [str(python), "-W", "ignore", str(TRIALS), package, url, str(seed), str(trials)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    assert len(found) == trials
    return found


@pytest.mark.timeout(300)
def test_killed_writers(tmp_path: Path) -> None:
    assert outcomes(sys.executable, "kara_cache", f"file://{tmp_path}", 0, 20) == [[]] * 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writers_killed_two_hundred_times(tmp_path: Path) -> None:
    assert outcomes(sys.executable, "kara_cache", f"file://{tmp_path}", 1000, 200) == [[]] * 200


@pytest.mark.clients
@pytest.mark.timeout(900)
def test_the_published_package_fails_the_same_trials(tmp_path: Path) -> None:
    """The control: what these trials find is real."""
    found = outcomes(python_with("kara-storage==2.1.5"), "kara_storage", f"file://{tmp_path}", 0, 20)
    failures = [failure for outcome in found for failure in outcome]
    assert any(failure.startswith("lost") for failure in failures), failures
    assert any(failure.startswith(("wrong", "error")) for failure in failures), failures
    assert len(failures) >= 10


@pytest.mark.timeout(300)
def test_killed_writers_to_an_object_store(tmp_path: Path) -> None:
    services.require_module("oss2")
    with OssServer(buckets=["bucket"]) as server:
        keys = server.credentials
        options = {"app_key": keys.key_id, "app_secret": keys.key_secret, "use_ssl": False}
        url = f"oss://{server.host}/bucket/trials"
        found = outcomes(sys.executable, "kara_cache", url, 0, 8, TRIAL_OPTIONS=json.dumps(options))
    assert found == [[]] * 8
