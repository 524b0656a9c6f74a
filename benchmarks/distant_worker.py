"""A link to a worker as between racks or zones: a round trip takes time, and one connection gets so much.

    python -m benchmarks.distant_worker PORT WORKER_PORT ROUND_TRIP_S BYTES_PER_S

Each request waits ROUND_TRIP_S; each connection gets at most BYTES_PER_S (clouds give one flow 5 Gbit/s).
Connections do not share. Where the kernel has netem, `tc` does the same; many have not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

_PACING = 47  # SO_MAX_PACING_RATE, which Python does not name: the kernel paces what is sent
_PIECE = 1 << 20


def _forward_requests(client: socket.socket, worker: socket.socket, round_trip_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := client.recv(_PIECE):
            time.sleep(round_trip_s)
            worker.sendall(data)
    _end(worker)


def _forward_answers(worker: socket.socket, client: socket.socket) -> None:
    """From socket to socket inside the kernel: the cores belong to those who are measured."""
    out, into = os.pipe()
    with contextlib.suppress(OSError):
        while count := os.splice(worker.fileno(), into, _PIECE):
            while count:
                count -= os.splice(out, client.fileno(), count)
    os.close(out)
    os.close(into)
    _end(client)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def main(port: str, worker_port: str, round_trip_s: str, bytes_per_s: str) -> None:
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        while True:
            client, _ = listening.accept()
            worker = socket.create_connection(("127.0.0.1", int(worker_port)))
            for sock in (client, worker):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, _PACING, min(int(bytes_per_s), (1 << 32) - 1))
            requests, answers = (client, worker, float(round_trip_s)), (worker, client)
            threading.Thread(target=_forward_requests, args=requests, daemon=True).start()
            threading.Thread(target=_forward_answers, args=answers, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:5])
