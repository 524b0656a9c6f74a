"""A `Source` whose bytes are fetched by another process into memory that both see.

Thirty-two threads that parse answers and take sums take the interpreter from whoever reads: the slowest
hundredth of reads waited 50 ms for it (measured). A process of lower priority has an interpreter of its own;
this one's threads wait for its answers and hand pages to the page store. Priorities of threads would not
do: one that holds the interpreter and is not scheduled stops all others.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import msgspec

from kara_cache.errors import UnderStoreError
from kara_cache.mount import Mount
from kara_worker.fetch.local import LocalSource
from kara_worker.fetch.messages import (
    MAX_PACKET_BYTES,
    Valid,
    decode_answers,
    encode,
    fetched_of,
    offsets,
    order_of,
)
from kara_worker.fetch.source import Fetched, Progress, Seat, Wanted
from kara_worker.metrics import WorkerMetrics

log = logging.getLogger(__name__)

_SILENCE_S = 600.0  # a store's own time limits end a fetch long before
_PATIENCE = 3  # deaths in a row before this process does the work itself
_END_S = 2.0


class FetchProcess:
    """Started when the first seat is borrowed, ended by `rest`; one that dies is replaced."""

    def __init__(
        self, local: LocalSource, metrics: WorkerMetrics, page_bytes: int, *, seats: int, nice: int
    ) -> None:
        """`local` does what cannot be told to another process. `nice` is added to this process's own."""
        self.seat_bytes = local.seat_bytes
        self._local = local
        self._metrics = metrics
        self._page_bytes = page_bytes
        self._nice = nice
        self._seats = threading.Semaphore(seats)
        self._lock = threading.Lock()  # guards those below
        self._free: list[ProcessSeat] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._deaths = 0
        self._closed = False

    def __repr__(self) -> str:
        process = self._process
        return f"<FetchProcess {'resting' if process is None else process.pid}>"

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def borrow(self) -> Seat:
        self._seats.acquire()
        try:
            with self._lock:
                while self._free:
                    seat = self._free.pop()
                    if seat.is_usable:
                        return seat
                    seat.close()
                if self._deaths < _PATIENCE and not self._closed:
                    return self._new_seat()
        except OSError as exc:
            log.warning("no process to fetch in: %s", exc)
        return _Borrowed(self._local.borrow(), self._seats)

    def rest(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            control, self._control = self._control, None
            free, self._free = self._free, []
        for seat in free:
            seat.close()
        if control is not None:
            control.close()
        if process is not None:
            _end(process)

    def close(self) -> None:
        self._closed = True
        self.rest()

    def _new_seat(self) -> ProcessSeat:
        if self._process is not None and self._process.poll() is not None:
            self._bury(self._process)
        if self._process is None:
            self._start()
        assert self._control is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("kara-fetch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, self.seat_bytes)
            mapped = mmap.mmap(memory, self.seat_bytes)
            socket.send_fds(self._control, [b"s"], [theirs.fileno(), memory])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
        ours.settimeout(_SILENCE_S)
        return ProcessSeat(self, ours, memoryview(mapped))

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "kara_worker.fetch", str(theirs.fileno()), str(self._nice)]
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a session of its own may have a priority of its own
                )
            except OSError:
                ours.close()
                raise
        self._control = ours

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        self._deaths += 1
        log.warning("the fetching process ended with %d, %d times in a row", process.returncode, self._deaths)
        self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None

    # what seats ask for

    def returned(self, seat: ProcessSeat, *, keep: bool) -> None:
        with self._lock:
            usable = not keep and seat.is_usable and self._process is not None and not self._closed
            if usable:
                self._free.append(seat)
        if not usable:
            seat.close()
        self._seats.release()

    def order(self, mount: Mount, wanted: Sequence[Wanted]) -> bytes | None:
        """None for what cannot be told."""
        try:
            options = msgspec.json.encode(dict(mount.options))
            packet = encode(order_of(mount.url, options, self._page_bytes, wanted))
        except (TypeError, ValueError, UnicodeEncodeError):
            return None
        return packet if len(packet) <= MAX_PACKET_BYTES else None

    def note(self, mount: Mount, fetched: Fetched, length: int) -> None:
        self._deaths = 0
        self._metrics.note_store_read(mount.name, fetched.seconds, fetched.error)
        if fetched.error is None:
            self._metrics.store_bytes(mount.name, length)

    def local_seat(self) -> Seat:
        return self._local.borrow()


class ProcessSeat:
    """A socket to a thread of the process, and the memory that they share."""

    def __init__(self, source: FetchProcess, sock: socket.socket, memory: memoryview) -> None:
        self.is_usable = True
        self._source = source
        self._sock = sock
        self._memory: memoryview | None = memory
        self._lengths: Sequence[int] = ()

    def buffers(self, lengths: Sequence[int]) -> list[memoryview]:
        assert self._memory is not None
        self._lengths = lengths
        begins = offsets(lengths)
        return [self._memory[begin : begin + length] for begin, length in zip(begins, lengths, strict=False)]

    def fetch(self, mount: Mount, wanted: Sequence[Wanted], progress: Progress) -> Iterator[Fetched]:
        packet = self._source.order(mount, wanted)
        if packet is None:
            yield from self._fetch_here(mount, wanted, progress)
            return
        done, self.is_usable = 0, False  # until all answers have come
        try:
            self._sock.send(packet)
            while done < len(wanted):
                for answer in decode_answers(self._receive()):
                    if isinstance(answer, Valid):
                        progress(answer.index, answer.count)
                        continue
                    fetched = fetched_of(answer)
                    self._source.note(mount, fetched, wanted[fetched.index].length)
                    done += 1
                    yield fetched
            self.is_usable = True
        except OSError as exc:
            error = UnderStoreError(f"the process that fetched {mount.name} has ended: {exc}")
            for index in range(done, len(wanted)):
                yield Fetched(index, 0.0, (), error)

    def _fetch_here(self, mount: Mount, wanted: Sequence[Wanted], progress: Progress) -> Iterator[Fetched]:
        seat = self._source.local_seat()
        views = seat.buffers(self._lengths)
        for fetched in seat.fetch(mount, wanted, progress):
            if fetched.error is None:
                self.buffers(self._lengths)[fetched.index][:] = views[fetched.index]
            yield fetched

    def _receive(self) -> bytes:
        packet = self._sock.recv(MAX_PACKET_BYTES)
        if not packet:
            raise ConnectionResetError("it closed its socket")
        return packet

    def release(self, *, keep: bool) -> None:
        self._source.returned(self, keep=keep)

    def close(self) -> None:
        """The memory goes when the last view of it has gone."""
        self.is_usable = False
        self._sock.close()
        self._memory = None


class _Borrowed:
    """A seat in this process that counts as one of the others."""

    def __init__(self, seat: Seat, seats: threading.Semaphore) -> None:
        self.buffers = seat.buffers
        self.fetch = seat.fetch
        self._seat = seat
        self._seats = seats

    def release(self, *, keep: bool) -> None:
        self._seat.release(keep=keep)
        self._seats.release()


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself when its control socket closes; it has nothing to lose."""
    deadline = time.monotonic() + _END_S
    try:
        process.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
