"""Nothing configured: one private worker for this user and host, started by the first who needs it.

It listens on a unix socket that only our uid may use, takes the mounts its user names, shares pages
among all of the user's processes, and exits when nobody asked for anything for a while.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from kara_cache.config import ClientConfig
from kara_cache.errors import CacheError, ConfigError, WorkerUnavailable
from kara_cache.layered import keys, layered
from kara_cache.membership.base import MembershipView, WorkerInfo

START_TIMEOUT_S = 30.0
_RETRY_S = 2.0  # after a worker that could not be started: the shortest time to the next attempt
_DRAIN_TIMEOUT_S = 10.0  # one that is about to end gives its directory up within this time
_CONNECT_TIMEOUT_S = 1.0
_SOCKET_LIMIT = 100  # sun_path holds 108 bytes


@dataclass(frozen=True, slots=True)
class PrivateWorkerConfig:
    """What of a worker's configuration counts for a private one, under the same names."""

    page_dirs: tuple[str, ...] = ()  # the first is used; default `kara/pages` in the user's cache directory
    capacity_bytes: int = 0  # 0: 10 GiB, or half of a smaller disk
    idle_exit_s: float = 600.0  # a coffee is shorter, a night is longer; the pages stay anyway

    def __post_init__(self) -> None:
        if not self.idle_exit_s > 0:
            raise ConfigError(f"idle_exit_s: want more than 0, got {self.idle_exit_s}")

    @classmethod
    def load(cls, env: Mapping[str, str]) -> PrivateWorkerConfig:
        """From KARA_PAGE_DIRS, KARA_CAPACITY_BYTES and KARA_IDLE_EXIT_S. Raises ConfigError."""
        return layered(cls, env=env, other_keys=keys(ClientConfig))

    @property
    def page_dir(self) -> Path:
        """Absolute: the worker runs in a directory of its own."""
        if self.page_dirs:
            return Path(os.path.abspath(os.path.expanduser(self.page_dirs[0])))
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return Path(os.path.abspath(base)) / "kara" / "pages"


class LocalMembership:
    """A membership of one: the private worker, started when it is not there (again).

    `view` costs one system call while the worker lives. Thread-safe, also in a forked child.
    """

    def __init__(self, *, page_dir: str = "", idle_exit_s: float | None = None) -> None:
        """What is not given here is as the environment says. Raises ConfigError."""
        config = PrivateWorkerConfig.load(os.environ)
        if page_dir:
            config = replace(config, page_dirs=(page_dir,))
        if idle_exit_s is not None:
            config = replace(config, idle_exit_s=idle_exit_s)
        self._config = config
        self._lock = threading.Lock()  # guards the five below
        self._view = MembershipView((), 0, "static")
        self._process: _Process | None = None
        self._failed = float("-inf")  # monotonic; when a worker could not be started
        self._failure = ""
        self._owner = os.getpid()

    def view(self) -> MembershipView:
        """Raises WorkerUnavailable with the worker's own words when it cannot be started, ConfigError
        where its place is not ours."""
        if self._owner != os.getpid():
            # after fork: the parent's lock may be held by a thread that is not here
            self._lock, self._owner = threading.Lock(), os.getpid()
        process, view = self._process, self._view
        if process is not None and process.alive:
            return view
        with self._lock:
            if self._process is not None and self._process.alive:
                return self._view
            if time.monotonic() - self._failed < _RETRY_S:
                raise WorkerUnavailable(self._failure)
            try:
                process, worker = ensure_worker(self._config)
            except CacheError as exc:
                self._failed, self._failure = time.monotonic(), str(exc)
                raise
            # the view first: who reads both without the lock must not pair a new process with an old view
            self._view = MembershipView((worker,), self._view.revision + 1, "static")
            self._process = process
            return self._view

    def close(self) -> None:
        """The worker stays: other processes use it, and it ends by itself."""


class _Process:
    """Whether a process still runs, asked of the kernel by pidfd: its number may be a stranger's by now,
    and a zombie, which nobody reaps where PID 1 is a training script, answers signal 0 as if it lived.
    """

    __slots__ = ("_fd", "pid")

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError."""
        self.pid = pid
        self._fd = -1
        os.kill(pid, 0)
        with suppress(PermissionError, NotImplementedError):  # a sandbox that does not know the call
            self._fd = os.pidfd_open(pid)

    @property
    def alive(self) -> bool:
        if self._fd < 0:
            with suppress(ProcessLookupError):
                os.kill(self.pid, 0)
                return True
            return False
        poll = select.poll()  # one object would refuse a second thread
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def ensure_worker(config: PrivateWorkerConfig) -> tuple[_Process, WorkerInfo]:
    """The private worker on `config.page_dir`; starts one if none lives.

    Processes that come at the same time wait for one another by a file lock.
    """
    runtime = _runtime_dir(config.page_dir)
    record = runtime / "worker.json"
    if (found := _living(record)) is not None:
        return found
    with _locked(runtime / "starting"):
        if (found := _living(record)) is not None:
            return found
        _wait_until_given_up(config.page_dir)
        _start(config, runtime)
        if (found := _living(record)) is not None:
            return found
    raise WorkerUnavailable(f"the private worker on {config.page_dir} ended as soon as it had started")


def _wait_until_given_up(page_dir: Path) -> None:
    """A worker that is ending listens no more and still holds its directory's lock."""
    try:
        fd = os.open(page_dir / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            time.sleep(0.02)
    finally:
        os.close(fd)


def _start(config: PrivateWorkerConfig, runtime: Path) -> None:
    log = runtime / "worker.log"
    command = [sys.executable, "-m", "kara_worker", "--private", "--detach", "--log-file", str(log)]
    command += ["--page-dir", str(config.page_dir), "--capacity", str(config.capacity_bytes)]
    command += ["--socket-dir", str(runtime), "--idle-exit", f"{config.idle_exit_s}s"]
    # the other KARA_* settings are for clients; a private worker is told everything by flags
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KARA_")}
    environment["KARA_RECORD"] = str(runtime / "worker.json")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_TIMEOUT_S,
            env=environment,
            cwd=runtime,  # -m looks there first: not at a queue.py beside the user's script
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise WorkerUnavailable(
            f"the private worker did not start in {START_TIMEOUT_S} s; see {log}"
        ) from exc
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-1000:]
        raise WorkerUnavailable(f"the private worker did not start: {words or f'see {log}'}")


def _living(record: Path) -> tuple[_Process, WorkerInfo] | None:
    try:
        document = json.loads(record.read_text())
        process, path = _Process(int(document["pid"])), str(document["socket_path"])
        worker = WorkerInfo(
            id=str(document["id"]),
            host="localhost",
            port=0,
            socket_path=path,
            boot_id=str(document["boot_id"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (process, worker) if process.alive and _listens(path) else None


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except TimeoutError:  # busy, or stopped by somebody: it is there
            return True
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
    """Raises ConfigError: whoever can write there could be asked in place of our worker."""
    try:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        facts = directory.lstat()
    except OSError as exc:
        raise ConfigError(
            f"{directory}: {exc.strerror}; set XDG_RUNTIME_DIR to a directory of yours"
        ) from exc
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise ConfigError(
            f"{directory}, for the socket of the private worker: uid {facts.st_uid}, mode "
            f"{stat.filemode(facts.st_mode)}, expected uid {os.getuid()}, mode drwx------; "
            "remove it, or set XDG_RUNTIME_DIR to a directory of yours"
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
