"""Nothing configured: one private worker for all of a user's processes, started whenever it is needed."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from main_job import content, data_gets, store_of
from private_home import PrivateHome, outputs, private_home, three_lines, wait_for_exit

from kara_cache.errors import ConfigError, WorkerUnavailable
from kara_cache.local_worker import LocalMembership, PrivateWorkerConfig
from kara_worker.testing.rude_http_server import RudeHttpServer

DATA = content("file", (2 << 20) + 5)
HEAD = f"{1 << 20} {hashlib.sha256(DATA[: 1 << 20]).hexdigest()}\n"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[PrivateHome]:
    with private_home(tmp_path / "home") as found:
        found.home.mkdir()
        yield found


@pytest.fixture
def store() -> Iterator[RudeHttpServer]:
    with store_of(file=DATA) as found:
        yield found


@pytest.fixture
def membership(home: PrivateHome, monkeypatch: pytest.MonkeyPatch) -> LocalMembership:
    """In this process, as this user."""
    for name in [name for name in os.environ if name.startswith("KARA_")]:
        monkeypatch.delenv(name)
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    return LocalMembership()


def lines(store: RudeHttpServer) -> str:
    return three_lines(f"{store.url}/d/file")


def test_processes_share_one_worker_and_its_pages(home: PrivateHome, store: RudeHttpServer) -> None:
    assert home.run(lines(store)) == HEAD
    assert data_gets(store) == 1
    first = home.worker["pid"]
    assert home.run(lines(store)) == HEAD
    assert data_gets(store) == 1
    assert home.worker["pid"] == first
    assert [path.name for path in home.home.iterdir()] == [".cache"]


def test_the_first_thing_a_process_asks_may_be_a_listing(home: PrivateHome, store: RudeHttpServer) -> None:
    """It has a connection of its own; the private worker has no other way in than its socket."""
    assert home.run(lines(store)) == HEAD
    code = "import fsspec\nfs = fsspec.filesystem('kara')\nprint(len(fs.ls('/', detail=False)))"
    assert home.run(code) == "1\n"


@pytest.mark.timeout(180)
def test_processes_that_start_together_get_one_worker(home: PrivateHome, store: RudeHttpServer) -> None:
    processes = [home.start(lines(store)) for _ in range(8)]
    assert outputs(processes) == [HEAD] * 8
    assert home.starts() == 1
    assert data_gets(store) == 1


def test_a_killed_worker_is_replaced_by_the_next_read(home: PrivateHome, store: RudeHttpServer) -> None:
    assert home.run(lines(store)) == HEAD
    first = home.worker["pid"]
    home.wait_for_pages(1)
    home.end_worker(signal.SIGKILL)
    assert home.run(lines(store)) == HEAD
    assert home.worker["pid"] != first
    assert data_gets(store) == 1  # the pages outlived the worker


def test_a_process_sees_that_its_worker_was_killed(home: PrivateHome, membership: LocalMembership) -> None:
    view = membership.view()
    assert membership.view() is view
    home.end_worker(signal.SIGKILL)
    renewed = membership.view()
    assert renewed.revision == view.revision + 1
    assert renewed.workers[0].id == view.workers[0].id
    assert home.starts() == 2


def test_an_idle_worker_ends_and_the_next_read_starts_another(
    home: PrivateHome, store: RudeHttpServer
) -> None:
    assert home.run(lines(store), KARA_IDLE_EXIT_S="3s") == HEAD
    first = int(home.worker["pid"])
    with suppress(ProcessLookupError):  # it may have ended by now
        descriptor = os.pidfd_open(first)
        wait_for_exit(descriptor)
        os.close(descriptor)
    assert home.run(lines(store)) == HEAD
    assert home.worker["pid"] != first
    assert data_gets(store) == 1


def test_a_worker_that_gives_up_its_directory_is_waited_for(
    home: PrivateHome, membership: LocalMembership
) -> None:
    """Between the end of its socket and the end of its process, as in a drain."""
    socket = Path(membership.view().workers[0].socket_path)
    pid = int(home.worker["pid"])
    descriptor = os.pidfd_open(pid)
    socket.unlink()
    os.kill(pid, signal.SIGTERM)
    other = LocalMembership()
    assert other.view().workers
    wait_for_exit(descriptor)
    os.close(descriptor)
    assert home.worker["pid"] != pid


def test_a_record_of_another_process_is_not_believed(home: PrivateHome, membership: LocalMembership) -> None:
    """Its pid may be anybody's after a while; who listens on its socket is what counts."""
    membership.view()
    (record,) = home.runtime.glob("**/worker.json")
    pid = home.worker["pid"]
    home.end_worker(signal.SIGKILL)
    record.write_text(record.read_text().replace(f'"pid": {pid}', f'"pid": {os.getpid()}'))
    LocalMembership().view()
    assert home.worker["pid"] not in (pid, os.getpid())


def test_the_users_directory_is_not_looked_into_for_modules(home: PrivateHome, store: RudeHttpServer) -> None:
    (home.home / "kara_worker.py").write_text("raise SystemExit('a stranger')")
    assert home.run(lines(store)) == HEAD


def test_what_the_environment_says(home: PrivateHome, store: RudeHttpServer) -> None:
    """The worker's own names; settings that are for clients do not reach it."""
    pages, other = home.home / "ssd0", home.home / "ssd1"
    printed = home.run(
        lines(store), KARA_PAGE_DIRS=f"{pages},{other}", KARA_CAPACITY_BYTES="64MiB", KARA_TIMEOUT_S="20"
    )
    assert printed == HEAD
    assert (pages / "KARA_PAGES").exists()
    assert not other.exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("KARA_PAGE_DIR", "/x", "did you mean KARA_PAGE_DIRS"),
        ("KARA_IDLE_EXIT_S", "0", "idle_exit_s: want more than 0"),
        ("KARA_CAPACITY_BYTES", "10 gigs", "capacity_bytes (environment KARA_CAPACITY_BYTES)"),
    ],
)
def test_wrong_settings_are_refused(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PrivateWorkerConfig.load({name: value})
    assert words in str(caught.value)


def hostile(kind: str, directory: Path) -> None:
    if kind == "a directory that others may enter":
        directory.mkdir()
        directory.chmod(0o755)
    elif kind == "a link to a directory of ours":
        (directory.parent / "target").mkdir(mode=0o700)
        directory.symlink_to(directory.parent / "target")
    elif kind == "a file":
        directory.touch(mode=0o600)
    else:
        if os.geteuid() != 0:
            pytest.skip("only root can give a directory to somebody else")
        directory.mkdir(mode=0o700)
        os.chown(directory, 12345, 12345)


@pytest.mark.parametrize(
    "kind",
    [
        "a directory that others may enter",
        "a link to a directory of ours",
        "a file",
        "another user's directory",
    ],
)
def test_a_runtime_directory_that_others_can_reach_is_refused(
    home: PrivateHome, membership: LocalMembership, kind: str
) -> None:
    membership.view()
    home.end_worker()
    (runtime,) = home.runtime.iterdir()
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    record = (runtime / "worker.json").read_text()
    for path in runtime.iterdir():
        path.unlink()
    runtime.rmdir()
    hostile(kind, runtime)
    with pytest.raises(ConfigError, match=rf"{runtime.name}.* expected uid {os.getuid()}, mode drwx------"):
        membership.view()
    assert record not in [path.read_text() for path in home.runtime.glob("*/worker.json")]


def test_a_worker_that_cannot_start_is_tried_again_later(
    home: PrivateHome, monkeypatch: pytest.MonkeyPatch, membership: LocalMembership
) -> None:
    pages = home.home / "photos"
    pages.mkdir()
    (pages / "wedding.jpg").write_bytes(b"irreplaceable")
    mine = LocalMembership(page_dir=str(pages))
    for _ in range(2):  # the second time from memory
        with pytest.raises(WorkerUnavailable, match=r"wedding\.jpg, so it is not ours"):
            mine.view()
    monkeypatch.setattr("kara_cache.local_worker._RETRY_S", 0.0)
    (pages / "wedding.jpg").rename(home.home / "wedding.jpg")
    assert len(mine.view().workers) == 1
