"""Nothing configured: one private worker for this user and host, started by the first who needs it.

It listens on a unix socket that only our uid may use, takes the mounts its user names, shares pages
among all of the user's processes, and exits when nobody asked for anything for a while.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from kara_cache.errors import WorkerUnavailable
from kara_cache.membership.base import MembershipView, WorkerInfo

START_TIMEOUT_S = 30.0
IDLE_EXIT_S = 600
_RETRY_S = 2.0  # the shortest time between two attempts to start a worker
_SOCKET_LIMIT = 100  # sun_path holds 108 bytes


class LocalMembership:
    """A membership of one: the private worker, started when it is not there (again).

    `view` costs one signal-0 probe while the worker lives.
    """

    def __init__(self, *, page_dir: str = "", idle_exit_s: float = IDLE_EXIT_S) -> None:
        self._page_dir = Path(page_dir) if page_dir else default_page_dir()
        self._idle_exit_s = idle_exit_s
        self._lock = threading.Lock()  # guards the three below
        self._view = MembershipView((), 0, "static")
        self._pid = 0
        self._tried = float("-inf")
        self._owner = os.getpid()

    def view(self) -> MembershipView:
        """Raises WorkerUnavailable with the worker's own words when it cannot be started."""
        if (
            self._owner != os.getpid()
        ):  # after fork: the parent's lock may be held by a thread that is not here
            self._lock, self._owner = threading.Lock(), os.getpid()
        if self._pid and _alive(self._pid):
            return self._view
        with self._lock:
            if self._pid and _alive(self._pid):
                return self._view
            if time.monotonic() - self._tried < _RETRY_S:
                return self._view
            self._tried = time.monotonic()
            pid, worker = ensure_worker(self._page_dir, self._idle_exit_s)
            self._pid = pid
            self._view = MembershipView((worker,), self._view.revision + 1, "static")
            return self._view

    def close(self) -> None:
        """The worker stays: other processes use it, and it ends by itself."""


def default_page_dir() -> Path:
    """KARA_PAGE_DIR, or `kara/pages` below the user's cache directory."""
    if configured := os.environ.get("KARA_PAGE_DIR"):
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "kara" / "pages"


def ensure_worker(page_dir: Path, idle_exit_s: float = IDLE_EXIT_S) -> tuple[int, WorkerInfo]:
    """The pid and address of the private worker on `page_dir`; starts one if none lives.

    Processes that come at the same time wait for one another by a file lock.
    """
    runtime = _runtime_dir(page_dir)
    record = runtime / "worker.json"
    if (found := _living(record)) is not None:
        return found
    with _locked(runtime / "starting"):
        if (found := _living(record)) is not None:
            return found
        _start(page_dir, runtime, idle_exit_s)
        if (found := _living(record)) is not None:
            return found
    raise WorkerUnavailable(f"the private worker on {page_dir} ended as soon as it had started")


def _start(page_dir: Path, runtime: Path, idle_exit_s: float) -> None:
    log = runtime / "worker.log"
    command = [sys.executable, "-m", "kara_worker", "--private", "--detach", "--log-file", str(log)]
    command += ["--page-dir", str(page_dir), "--socket-dir", str(runtime), "--idle-exit", f"{idle_exit_s}s"]
    # the user's KARA_* settings are for clients; a private worker is told everything by flags
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KARA_")}
    environment["KARA_RECORD"] = str(runtime / "worker.json")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise WorkerUnavailable(
            f"the private worker did not start in {START_TIMEOUT_S} s; see {log}"
        ) from exc
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-1000:]
        raise WorkerUnavailable(f"the private worker did not start: {words or f'see {log}'}")


def _living(record: Path) -> tuple[int, WorkerInfo] | None:
    try:
        document = json.loads(record.read_text())
        pid, path = int(document["pid"]), str(document["socket_path"])
        if not _alive(pid) or not os.path.exists(path):
            return None
        worker = WorkerInfo(
            id=str(document["id"]),
            host="localhost",
            port=0,
            socket_path=path,
            boot_id=str(document["boot_id"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid, worker


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _runtime_dir(page_dir: Path) -> Path:
    """A directory of ours alone for the socket, named after the page directory; short enough for a socket."""
    name = "kara-" + blake2b(str(page_dir.absolute()).encode(), digest_size=6).hexdigest()
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "")
    if not base.is_absolute() or not os.access(base, os.W_OK) or len(str(base)) + 60 > _SOCKET_LIMIT:
        base = Path(tempfile.gettempdir()) / f"kara-{os.getuid()}"
        _own(base)
    runtime = base / name
    _own(runtime)
    return runtime


def _own(directory: Path) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    facts = directory.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(
            f"{directory} belongs to uid {facts.st_uid} with mode {facts.st_mode & 0o777:o}, "
            f"expected uid {os.getuid()} with mode 700"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WorkerUnavailable(
                        f"another process has been starting a worker for {START_TIMEOUT_S} s"
                    ) from None
                time.sleep(0.02)
        yield
