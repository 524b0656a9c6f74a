"""Whether a page goes out by copy or by sendfile: what costs less on this kernel and disk, found at start.

Copied, a page is read into our memory, compared with its sum and sent; by sendfile it goes from the
kernel's memory, unread by us, at the price of a second system call. Which costs less at 32 KiB is a matter of
the processor, of the kernel's mitigations and of the file system, so it is measured where the worker runs.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

from kara_cache.checksum import checksum

log = logging.getLogger(__name__)

USUAL_BYTES = 8 << 10  # measured on an AMD EPYC, Linux 6.18, ext4: 32 KiB in 15.5 us by sendfile, copied 28
SIZES = (4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10)
_BUFFER_BYTES = 256 << 10
_WAIT_S = 1.0
_CPU_S = 0.03  # for all of it
_ROUNDS = 12  # of which the fastest counts: whatever disturbs makes it slower
_WORTH = 1.05  # less than this is noise, and no reason to differ from the usual
_HEAD = bytes(200)  # as long as the head of an answer


@dataclass(frozen=True, slots=True)
class SendCost:
    """Seconds to send `size` bytes of a file, in either way."""

    size: int
    copied_s: float
    sendfile_s: float


def sendfile_above(costs: Sequence[SendCost]) -> int:
    """The size up to which pages are copied: the one that costs least over all that was measured. Pure.

    `USUAL_BYTES` where that is as good within a few per cent, or nothing was measured.
    """
    if not costs:
        return USUAL_BYTES

    def lost(limit: int) -> float:
        """How much dearer than the best way, on average."""
        ways = [cost.copied_s if cost.size <= limit else cost.sendfile_s for cost in costs]
        pairs = zip(ways, costs, strict=True)
        return sum(way / min(cost.copied_s, cost.sendfile_s) for way, cost in pairs) / len(costs)

    best = min((0, *(cost.size for cost in costs)), key=lost)
    return USUAL_BYTES if lost(USUAL_BYTES) <= _WORTH * lost(best) else best


def measured(directory: Path) -> int:
    """`sendfile_above` of what `measure` finds, `USUAL_BYTES` where it cannot be found. Some 10 ms of CPU."""
    try:
        costs = measure(directory)
    except OSError as exc:
        log.debug("sending was not measured: %s", exc)
        return USUAL_BYTES
    chosen = sendfile_above(costs)
    for cost in costs:
        us = cost.copied_s * 1e6, cost.sendfile_s * 1e6
        log.debug("%d bytes: copied in %.1f us, by sendfile in %.1f us", cost.size, *us)
    log.debug("pages of more than %d bytes go out by sendfile", chosen)
    return chosen


def measure(directory: Path, *, cpu_s: float = _CPU_S) -> tuple[SendCost, ...]:
    """Both ways, for as many of SIZES as there is time for. Raises OSError where it cannot be tried."""
    began = process_time()
    costs: list[SendCost] = []
    with _file(directory) as fd, _loopback() as (ours, peer):
        trial = _Trial(fd, ours, peer)
        for size in SIZES:
            if process_time() - began > cpu_s:
                break
            costs.append(trial.cost(size))
    return tuple(costs)


class _Trial:
    """Answers of one size, sent over and over to a peer that takes them."""

    def __init__(self, fd: int, ours: socket.socket, peer: socket.socket) -> None:
        self._fd = fd
        self._ours = ours
        self._peer = peer
        self._scratch = memoryview(mmap.mmap(-1, SIZES[-1]))
        self._drain = memoryview(bytearray(SIZES[-1]))

    def cost(self, size: int) -> SendCost:
        self._timed(self._copy, size), self._timed(self._sendfile, size)  # the first of each warms up
        times = [(self._timed(self._copy, size), self._timed(self._sendfile, size)) for _ in range(_ROUNDS)]
        return SendCost(size, min(copied for copied, _ in times), min(sent for _, sent in times))

    def _timed(self, send: Callable[[int], None], size: int) -> float:
        began = perf_counter()
        send(size)
        took = perf_counter() - began
        left = size + len(_HEAD)
        while left:
            count = self._peer.recv_into(self._drain, min(left, len(self._drain)))
            if not count:
                raise ConnectionResetError("loopback closed")
            left -= count
        return took

    def _copy(self, size: int) -> None:
        view = self._scratch[:size]
        if os.preadv(self._fd, [view], 0) != size:
            raise OSError("the file is shorter than it was written")
        checksum(view)
        if self._ours.sendmsg((_HEAD, view)) != size + len(_HEAD):
            raise TimeoutError("loopback took a part only")

    def _sendfile(self, size: int) -> None:
        self._ours.send(_HEAD, socket.MSG_MORE)
        if os.sendfile(self._ours.fileno(), self._fd, 0, size) != size:
            raise TimeoutError("loopback took a part only")


@contextmanager
def _file(directory: Path) -> Iterator[int]:
    """A file without a name where the pages are, or where temporary files are if that cannot be."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.pwrite(fd, bytes(SIZES[-1]), 0)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _loopback() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection as clients have them, with room for one answer that nobody has read yet."""
    with socket.socket() as listening:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # inherited by what is accepted
            listening.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            peer.settimeout(_WAIT_S)
            peer.connect(listening.getsockname())
            listening.settimeout(_WAIT_S)
            ours, _ = listening.accept()
            with ours:
                ours.settimeout(_WAIT_S)
                ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield ours, peer
