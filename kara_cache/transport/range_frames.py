"""The answer to POST /ranges: frames in any order, each verified before it counts."""

from __future__ import annotations

from collections.abc import Sequence

from kara_cache.checksum import checksum
from kara_cache.errors import CacheError, PageCorrupt, WorkerUnavailable
from kara_cache.transport.connection import Connection
from kara_cache.wire import RANGE_FRAME, decode_error

_SCRATCH_BYTES = 256 << 10  # small frames are received together; larger payloads go past it
_MAX_ERROR_BYTES = 64 << 10
_DATA, _ERROR, _SIGN_OF_LIFE = range(3)


class RangeFrames:
    """Receives one answer. `done` and `errors` hold what arrived even when `receive` raises."""

    def __init__(self, connection: Connection, wanted: Sequence[memoryview]) -> None:
        """`wanted[i]` is filled by the frame of index i, to its last byte."""
        self.done = bytearray(len(wanted))  # 1 where the bytes are there and verified
        self.errors: dict[int, BaseException] = {}  # what the worker said of single ranges, and PageCorrupt
        self.broken: CacheError | None = None  # why the answer broke off, for who receives it
        self._connection = connection
        self._wanted = wanted
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._at = 0  # received and not used yet is _scratch[_at:_end]
        self._end = 0

    def receive(self) -> None:
        """Reads frames to the end of the body. Raises WorkerUnavailable when it is not what was asked for."""
        while self._take_small() or self._header_arrived():
            index, status, length, total = RANGE_FRAME.unpack_from(self._scratch, self._at)
            self._at += RANGE_FRAME.size
            if status == _SIGN_OF_LIFE:
                continue
            if index >= len(self._wanted) or self.done[index] or index in self.errors:
                raise self._protocol(f"range {index} of {len(self._wanted)} again or never asked for")
            if status == _DATA:
                self._receive_data(index, length, total)
            elif status == _ERROR and length <= _MAX_ERROR_BYTES:
                body = bytearray(length)
                self._take(memoryview(body))
                self.errors[index] = decode_error(0, bytes(body), self._connection.where)
            else:
                raise self._protocol(f"range {index}: status {status}, {length} bytes")
        missing = len(self._wanted) - sum(self.done) - len(self.errors)
        if missing:
            raise self._protocol(f"{missing} of {len(self._wanted)} ranges missing")
        self._connection.finish()

    def _take_small(self) -> bool:
        """Uses up the frames that were received as a whole, all of them in one loop: batches have thousands.

        False when another one has to be received, or looked at more closely.
        """
        scratch, wanted, done, at, end = self._scratch, self._wanted, self.done, self._at, self._end
        unpack, head, count = RANGE_FRAME.unpack_from, RANGE_FRAME.size, len(self._wanted)
        while end - at >= head:
            index, status, length, total = unpack(scratch, at)
            stop = at + head + length
            if status != _DATA or stop > end or index >= count or done[index] or index in self.errors:
                break
            view = wanted[index]
            if length != len(view):
                break
            view[:] = scratch[at + head : stop]
            if checksum(view) != total:
                break  # said by the general way, which takes it again
            done[index] = 1
            at = stop
        self._at = at
        return end - at >= head

    def _receive_data(self, index: int, length: int, total: int) -> None:
        view = self._wanted[index]
        if length != len(view):
            raise self._protocol(f"range {index}: {length} bytes announced, {len(view)} are there")
        self._take(view)
        if (got := checksum(view)) != total:
            what = f"{self._connection.where}: range {index}: checksum {got:#018x}, want {total:#018x}"
            self.errors[index] = PageCorrupt(what)
        else:
            self.done[index] = 1

    def _header_arrived(self) -> bool:
        """False at the end of the body."""
        while self._end - self._at < RANGE_FRAME.size:
            held = self._end - self._at
            self._scratch[:held] = self._scratch[self._at : self._end]
            self._at, self._end = 0, held
            count = self._connection.receive_some(self._scratch[held:])
            if not count:
                if held:
                    raise self._protocol("the body ended inside a frame")
                return False
            self._end += count
        return True

    def _take(self, view: memoryview) -> None:
        held = min(len(view), self._end - self._at)
        view[:held] = self._scratch[self._at : self._at + held]
        self._at += held
        if held < len(view) and self._connection.receive_into(view[held:]) != len(view) - held:
            raise self._protocol("the body ended inside a frame")

    def _protocol(self, what: str) -> WorkerUnavailable:
        return WorkerUnavailable(f"{self._connection.where}: {what}", reason="protocol")
