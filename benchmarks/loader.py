"""Runs the C loader, compiled for the occasion; without a compiler one in Python, which is weaker."""

from __future__ import annotations

import json
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

_CHUNK = 256 << 10
_ONCE_S = 300.0


class Loader:
    """Loads one server over many keep-alive connections. `kind` says which loader it is."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        compiler = shutil.which("cc") or shutil.which("gcc")
        self._command = [sys.executable, "-m", "benchmarks.loader"]
        self.kind = "Python epoll loader: above 4 KiB x 30k req/s or 3 GB/s it is the limit itself"
        if compiler is not None:
            program = home / "loader"
            source = Path(__file__).with_name("loader.c")
            subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
            self._command = [str(program)]
            self.kind = "C epoll loader (benchmarks/loader.c)"

    def run(self, port: int, targets: Sequence[str], *, connections: int, seconds: float) -> dict[str, float]:
        """requests, bytes, seconds, cpu_s (the loader's), p50_us, p99_us.

        A target may have a header after a tab: "/file\tRange: bytes=0-4095".
        """
        return self._run(port, targets, connections, seconds, within_s=seconds + 30)

    def once(self, port: int, targets: Sequence[str], *, connections: int) -> dict[str, float]:
        """The same for each target once, however long that takes."""
        return self._run(port, targets, connections, 0.0, within_s=_ONCE_S)

    def _run(
        self, port: int, targets: Sequence[str], connections: int, seconds: float, *, within_s: float
    ) -> dict[str, float]:
        file = self._home / "targets"
        file.write_text("\n".join(targets) + "\n")
        command = [*self._command, "127.0.0.1", str(port), str(connections), str(seconds), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
        if done.returncode:
            raise RuntimeError(f"loader: {done.stderr.strip() or done.stdout.strip()}")
        found: dict[str, float] = json.loads(done.stdout)
        return found


class _Peer:
    """One connection of the loader in Python."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.left = -1  # bytes of body to come; -1 while the head arrives
        self.began = 0.0
        self.head = b""

    def ask(self, request: bytes) -> None:
        self.left, self.head, self.began = -1, b"", perf_counter()
        self.socket.sendall(request)

    def receive(self, scratch: memoryview) -> int:
        """Reads once; bytes of body that were announced or nothing."""
        count = self.socket.recv_into(scratch[: min(_CHUNK, self.left)] if self.left > 0 else scratch)
        if not count:
            raise ConnectionError("closed by the server")
        if self.left > 0:
            self.left -= count
            return 0
        self.head += bytes(scratch[:count])
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return 0
        match = re.search(rb"content-length: *(\d+)", self.head[:end], re.I)
        if match is None or not self.head.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(f"answer {self.head[:200]!r}")
        self.left = int(match[1]) - (len(self.head) - end - 4)
        return int(match[1])


def _request(line: str) -> bytes:
    target, tab, header = line.partition("\t")
    return f"GET {target} HTTP/1.1\r\nHost: b\r\n{header + chr(13) + chr(10) if tab else ''}\r\n".encode()


def load(port: int, targets: Sequence[str], connections: int, seconds: float) -> dict[str, float]:
    """The same as loader.c, for machines without a compiler. 0 seconds: each target once."""
    requests = [_request(target) for target in targets]
    scratch, chosen = memoryview(bytearray(_CHUNK)), selectors.EpollSelector()
    done = size = turn = 0
    samples: list[float] = []
    began = perf_counter()
    for _ in range(connections if seconds else min(connections, len(requests))):
        peer = _Peer(port)
        chosen.register(peer.socket, selectors.EVENT_READ, peer)
        peer.ask(requests[turn % len(requests)])
        turn += 1
    while perf_counter() - began < seconds if seconds else done < len(requests):
        for key, _ in chosen.select(5.0):
            peer = key.data
            size += peer.receive(scratch)
            if peer.left == 0:
                samples.append((perf_counter() - peer.began) * 1e6)
                done += 1
                if seconds or turn < len(requests):
                    peer.ask(requests[turn % len(requests)])
                    turn += 1
    took = perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    samples.sort()
    return {
        "requests": done,
        "bytes": size,
        "seconds": took,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "p50_us": samples[len(samples) // 2],
        "p99_us": samples[len(samples) * 99 // 100],
    }


if __name__ == "__main__":
    _, _, port_text, connections_text, seconds_text, targets_file = sys.argv
    found = load(
        int(port_text),
        Path(targets_file).read_text().splitlines(),
        int(connections_text),
        float(seconds_text),
    )
    print(json.dumps(found))
