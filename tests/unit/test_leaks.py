"""The guard that all tests run under must itself see what it is there for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import leaks
import pytest
import services

TESTS = Path(__file__).parents[1]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_nothing_is_left_by_what_ended() -> None:
    before = leaks.running()
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert leaks.left_since(before, grace_s=0) == []


def test_a_thread_is_named_until_it_ends() -> None:
    before, end = leaks.running(), threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    thread.start()
    try:
        assert leaks.left_since(before, grace_s=0.05) == ["thread forgotten"]
    finally:
        end.set()
    assert leaks.left_since(before, grace_s=30) == []
    assert not thread.is_alive()


def test_a_daemon_thread_is_nobodys_business() -> None:
    before, end = leaks.running(), threading.Event()
    threading.Thread(target=end.wait, daemon=True).start()
    assert leaks.left_since(before, grace_s=0) == []
    end.set()


def test_a_child_is_named_and_killed() -> None:
    before = leaks.running()
    with subprocess.Popen(SLEEP) as child:
        (left,) = leaks.left_since(before, grace_s=0.05)
        assert left.startswith(f"process {child.pid}: ")
        assert child.wait(timeout=30) == -signal.SIGKILL


def test_what_a_process_of_a_wider_fixture_starts_is_that_fixtures_business() -> None:
    start = (
        "import subprocess as s, sys; sys.stdin.read(1); "
        f"print(s.Popen({SLEEP!r}).pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdin=-1, stdout=-1, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        before = leaks.running()
        worker.stdin.write("x")
        worker.stdin.flush()
        child = int(worker.stdout.readline())
        try:
            assert leaks.left_since(before, grace_s=0) == []
            worker.kill()
            worker.wait(timeout=30)
            (left,) = leaks.left_since(before, grace_s=0.05)
            assert left.startswith(f"process {child}: "), "its parent is gone: nobody else will end it"
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def start_detached(environment: dict[str, str]) -> int:
    """Starts a process in a session of its own whose parent ends at once; its pid."""
    start = (
        "import subprocess as s; "
        f"print(s.Popen({SLEEP!r}, start_new_session=True, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    return int(answer.stdout)


def test_a_detached_grandchild_is_found() -> None:
    before = leaks.running()
    pid = start_detached(dict(os.environ))
    (left,) = leaks.left_since(before, grace_s=0.05)
    assert left.startswith(f"process {pid}: ")
    assert leaks.left_since(before, grace_s=0) == []


def test_another_programs_process_is_not_ours() -> None:
    before = leaks.running()
    pid = start_detached({name: value for name, value in os.environ.items() if name != leaks.RUN_MARK})
    try:
        assert leaks.left_since(before, grace_s=0) == []
    finally:
        os.kill(pid, signal.SIGKILL)


LEAKY = """
import subprocess, sys, threading
import pytest

def test_leaks_a_process():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

@pytest.fixture(scope="session")
def server():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()

def test_uses_a_shared_server(server): pass

@pytest.mark.leaves_running("says so")
def test_says_so(until_the_end=[]):
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    until_the_end.append(subprocess.Popen(command, stdin=subprocess.PIPE))

def test_is_clean(): pass
"""


def test_a_test_that_leaks_fails_and_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_inner.py").write_text(LEAKY)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = leaves_running: x\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_LEAK_GRACE_S": "0.2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "4 passed, 1 error" in result.stdout, result.stdout
    assert "test_inner.py::test_leaks_a_process\n" in result.stdout
    assert "left running after 0.2 s: process" in result.stdout


# -- what is missing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ci", "without", "outcome"),
    [
        ("", "", pytest.skip.Exception),
        ("true", "", pytest.fail.Exception),
        ("true", "torch,no-such-program", pytest.skip.Exception),
    ],
)
def test_what_is_missing_skips_at_a_desk_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, without: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("KARA_TESTS_WITHOUT", without)
    with pytest.raises(outcome, match="no-such-program is missing"):
        services.require("no-such-program")


def test_what_is_there_is_returned() -> None:
    assert services.require(Path(sys.executable).name)
    assert services.require_module("json").loads("1") == 1


def test_a_module_that_fails_inside_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        services.require_module("half_installed")


def test_free_ports_differ_and_can_be_bound() -> None:
    assert len({services.free_port() for _ in range(50)}) == 50
