"""The fetching process of a worker: `python -m kara_worker.fetch CONTROL_FD NICE`. Nobody else starts it.

Over the control socket come seats: a socket and the shared memory that belongs to it. Each has a thread
here, which does the orders that come over its socket one after another and ends with it. The process ends
with the worker, however that ended: the control socket tells.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

from kara_cache.secret_ref import resolve_options
from kara_cache.ufs import open_store
from kara_cache.ufs.base import UnderStore
from kara_worker.fetch.messages import (
    MAX_PACKET_BYTES,
    Answer,
    Done,
    Failed,
    Order,
    Valid,
    decode_order,
    done_of,
    encode,
    failed_of,
    offsets,
)
from kara_worker.fetch.source import Wanted, shorter, sums_of
from kara_worker.turns import LONG_S, give_way, take_turns_of

log = logging.getLogger(__name__)

_TOGETHER_S = 0.01  # so long after the first of them: who waits for a page of a group waits twice that anyway
_TOGETHER = 16  # answers in a packet: a failure takes 6 KB, a small file 0.6, and a large one is alone


class OpenStores:
    """The stores of all orders so far, each opened once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _stores
        self._stores: dict[tuple[str, bytes], UnderStore] = {}

    def get(self, url: str, options: bytes) -> UnderStore:
        store = self._stores.get((url, options))
        if store is None:
            with self._lock:
                store = self._stores.get((url, options))
                if store is None:
                    store = open_store(url, resolve_options(json.loads(options)))
                    self._stores[url, options] = store
        return store


def serve_seat(sock: socket.socket, memory: int, stores: OpenStores, nice: int) -> None:
    """A thread's life. Losing the socket is the end of the seat, not an error."""
    with sock, suppress(OSError):
        size = os.fstat(memory).st_size
        view = memoryview(mmap.mmap(memory, size))
        os.close(memory)
        while packet := sock.recv(MAX_PACKET_BYTES):
            do_order(sock, decode_order(packet), view, stores)
            if nice:  # it is the thread's; the first order imports the store's library
                give_way(nice)
                nice = 0


class Answers:
    """Told at once, or a few together: each packet wakes a thread of the worker, and that takes the
    interpreter from readers for as long as a small file."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._kept: list[Answer] = []
        self._since = 0.0

    def add(self, answer: Done | Failed) -> None:
        now = time.perf_counter()
        if not self._kept:
            self._since = now
        self._kept.append(answer)
        if now - self._since > _TOGETHER_S or len(self._kept) == _TOGETHER:
            self.flush()

    def progress(self, index: int, valid: int) -> None:
        self._kept.append(Valid(index, valid))
        self.flush()

    def flush(self) -> None:
        if self._kept:
            self._sock.send(encode(self._kept))
            self._kept = []


def do_order(sock: socket.socket, order: Order, memory: memoryview, stores: OpenStores) -> None:
    begins, answers = offsets([length for _, _, _, length in order.wanted]), Answers(sock)
    for index, entry in enumerate(order.wanted):
        wanted = Wanted(*entry)
        view, began = memory[begins[index] : begins[index] + wanted.length], time.perf_counter()
        try:
            fetch_one(answers, index, wanted, view, stores.get(order.url, order.options))
            sums = sums_of(view, order.page_bytes)
        except Exception as exc:  # noqa: BLE001 - as for a task's top: the worker is told
            answers.add(failed_of(index, time.perf_counter() - began, exc))
        else:
            answers.add(done_of(index, time.perf_counter() - began, sums))
    answers.flush()


def fetch_one(answers: Answers, index: int, wanted: Wanted, view: memoryview, store: UnderStore) -> None:
    def progress(valid: int) -> None:
        if valid < wanted.length:
            answers.progress(index, valid)

    count = store.read_into(
        wanted.relative, wanted.start, view, version=wanted.version or None, progress=progress
    )
    if count != wanted.length:
        raise shorter(wanted, count)


def run(control: socket.socket, nice: int) -> None:
    stores = OpenStores()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        seat = socket.socket(fileno=descriptors[0])
        threading.Thread(target=serve_seat, args=(seat, descriptors[1], stores, nice), daemon=True).start()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the worker decides
    take_turns_of(LONG_S)
    run(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    os._exit(0)  # threads may wait for stores


if __name__ == "__main__":
    main()
