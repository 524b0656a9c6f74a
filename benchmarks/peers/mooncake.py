"""Mooncake Store: a distributed object cache in memory, written in C++, over TCP."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Peer, Served, UnavailableError
from benchmarks.servers import free_port, running

if TYPE_CHECKING:
    from benchmarks.scene import Scene

_BYTES = 1 << 30
_CUDA = "nvidia-cuda-runtime-cu12==12.9.79"  # its library is asked for, and not used here
_HOLDER = """
import sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", sys.argv[1], int(sys.argv[3]), 64 << 20, "tcp", "", sys.argv[2]) == 0
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _serve(scene: Scene) -> Iterator[Served]:
    port, metadata, metrics = free_port(), free_port(), free_port()
    python = PEER.python()
    command = [str(python.with_name("mooncake_master")), f"--rpc_port={port}"]
    command += ["--enable_http_metadata_server=true", f"--http_metadata_server_port={metadata}"]
    command += ["--http_metadata_server_host=127.0.0.1", f"--metrics_port={metrics}"]
    log = scene.home / "mooncake.log"
    with on_cores(SERVER_CORES), running(command, metadata, log=log, within_s=30) as server:
        options = {"master": f"127.0.0.1:{port}", "metadata": f"http://127.0.0.1:{metadata}/metadata"}
        (cuda,) = python.parent.parent.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
        more = {
            "file": str(scene.files / scene.names["big"][0]),
            "environment": {"LD_LIBRARY_PATH": str(cuda)},
        }
        with _holder(python, options, more["environment"], scene.home / "mooncake-holder.log") as holder:
            yield Served({**options, **more}, (server.pid, holder))


@contextlib.contextmanager
def _holder(python: Path, options: Mapping[str, str], more: Mapping[str, str], log: Path) -> Iterator[int]:
    """The process whose memory it is: the reader has none of its own, or it would read its own memory."""
    command = [str(python), "-c", _HOLDER, options["metadata"], options["master"], str(_BYTES)]
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **more}
        )
    try:
        assert process.stdout is not None
        ready = select.select([process.stdout], [], [], 30)[0] and process.stdout.readline()
        if ready != b"ready\n":
            raise UnavailableError(f"its client with the memory does not start: {log.read_text()[-300:]}")
        yield process.pid
    finally:
        process.kill()
        process.communicate(timeout=10)


PEER = Peer(
    "Mooncake Store 0.3",
    "mooncake",
    __name__,
    "master and a client with 1 GiB of memory, TCP, read from another client; get() of whole values",
    _serve,
    requirements=(
        "mooncake-transfer-engine-non-cuda==0.3.13",
        "numpy<2.3",
        _CUDA,
    ),
    programs={"ibv_devices": "ibverbs-utils"},  # for libibverbs, without which its master does not start
)


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        from mooncake.store import MooncakeDistributedStore

        self._store = MooncakeDistributedStore()
        failed = self._store.setup(
            "127.0.0.1", options["metadata"], 0, 256 << 20, "tcp", "", options["master"]
        )
        if failed:
            raise RuntimeError(f"setup returned {failed}")
        self._file = options["file"]

    def prepare(self, length: int, places: list[int]) -> None:
        with open(self._file, "rb") as file:
            for start in places:
                file.seek(start)
                failed = self._store.put(f"{length}-{start}", file.read(length or -1))
                if failed:
                    raise RuntimeError(f"put of {length} bytes returned {failed}")

    def read(self, length: int, start: int) -> bytes:
        found: bytes = self._store.get(f"{length}-{start}")
        return found
