"""Reads of a cached file at a steady pace, in a process of their own: what others feel meanwhile.

with SteadyReader(client_options, "/web/hot.bin", read_bytes=4096, per_s=200) as reader:
    ...
    latencies = reader.stop()
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from typing import Any

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig


class SteadyReader:
    """Over TCP, never from descriptors. Reading has begun when the constructor returns."""

    def __init__(self, options: dict[str, Any], path: str, *, read_bytes: int, per_s: int) -> None:
        given = {"options": options, "path": path, "read_bytes": read_bytes, "per_s": per_s}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.steady_reader", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # where the kernel schedules by sessions, not one with the store
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"no reader of {path}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> list[float]:
        """Latencies in seconds."""
        out, _ = self._process.communicate("stop\n", timeout=60)
        return list(json.loads(out.splitlines()[-1]))


def percentile(latencies: list[float], percent: float) -> float:
    """In milliseconds."""
    return sorted(latencies)[int(len(latencies) * percent / 100)] * 1e3 if latencies else 0.0


def main(arguments: str) -> None:
    given = json.loads(arguments)
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    latencies: list[float] = []
    with CacheClient(ClientConfig.load(env={}, local_reads=False, **given["options"])) as client:
        info, size = client.info(given["path"]), given["read_bytes"]
        view = memoryview(bytearray(size))
        for start in range(0, info.size, size):
            client.read_into(info, start, view)
        print("ready", flush=True)
        rng, due = random.Random(1), time.monotonic()
        while not stop.is_set():
            due = max(due + 1 / given["per_s"], time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            start = rng.randrange(info.size // size) * size
            began = time.perf_counter()
            client.read_into(info, start, view)
            latencies.append(time.perf_counter() - began)
    print(json.dumps(latencies))


if __name__ == "__main__":
    main(sys.argv[1])
