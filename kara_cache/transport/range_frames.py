"""The answer to POST /ranges: frames in any order, each verified before it counts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from kara_cache.checksum import checksum
from kara_cache.errors import CacheError, PageCorrupt, WorkerUnavailable
from kara_cache.transport.connection import Connection
from kara_cache.wire import (
    FRAME_DATA,
    FRAME_ERROR,
    FRAME_JOINED,
    FRAME_SIGN_OF_LIFE,
    MAX_JOINED_BYTES,
    RANGE_FRAME,
    decode_error,
)

_MAX_ERROR_BYTES = 64 << 10


class RangeFrames:
    """Receives one answer. `done` and `errors` hold what arrived even when `receive` raises."""

    def __init__(
        self, connection: Connection, wanted: Sequence[memoryview], whole: memoryview | None = None
    ) -> None:
        """`wanted[i]`, which is not empty, is filled by the frame of index i, to its last byte.

        `whole` is the memory in which all of them lie one behind the other, if they do: then frames of
        many ranges go straight there.
        """
        self.done = bytearray(len(wanted))  # 1 where the bytes are there and verified
        self.errors: dict[int, BaseException] = {}  # what the worker said of single ranges, and PageCorrupt
        self.broken: CacheError | None = None  # why the answer broke off, for who receives it
        self._connection = connection
        self._wanted = wanted
        self._whole = whole
        self._stops = list(
            accumulate(map(len, wanted))
        )  # where each would end if they lay one behind the other
        self._head = memoryview(bytearray(RANGE_FRAME.size))
        self._aside: memoryview | None = None  # for a frame of several ranges that lie apart

    def receive(self) -> None:
        """Reads frames to the end of the body. Raises WorkerUnavailable when it is not what was asked for."""
        while self._head_arrived():
            index, status, length, total = RANGE_FRAME.unpack(self._head)
            if status == FRAME_SIGN_OF_LIFE:
                continue
            if index >= len(self._wanted) or self.done[index] or index in self.errors:
                raise self._protocol(f"range {index} of {len(self._wanted)} again or never asked for")
            if status == FRAME_DATA:
                self._receive_data(index, length, total)
            elif status == FRAME_JOINED:
                self._receive_joined(index, length, total)
            elif status == FRAME_ERROR and length <= _MAX_ERROR_BYTES:
                body = bytearray(length)
                self._take(memoryview(body))
                self.errors[index] = decode_error(0, bytes(body), self._connection.where)
            else:
                raise self._protocol(f"range {index}: status {status}, {length} bytes")
        missing = len(self._wanted) - sum(self.done) - len(self.errors)
        if missing:
            raise self._protocol(f"{missing} of {len(self._wanted)} ranges missing")
        self._connection.finish()

    def _receive_joined(self, first: int, length: int, total: int) -> None:
        """The ranges from `first` on whose lengths add up to `length`, under one sum: all of them or none."""
        begin = self._stops[first] - len(self._wanted[first])
        end = begin + length
        stop = bisect_left(self._stops, end, first) + 1
        if length > MAX_JOINED_BYTES or stop > len(self._stops) or self._stops[stop - 1] != end:
            raise self._protocol(f"ranges from {first} on: {length} bytes, which no run of them has")
        if any(self.done[first:stop]) or any(
            index in self.errors for index in range(first, stop) if self.errors
        ):
            raise self._protocol(f"a range of {first} to {stop} again")
        if self._whole is not None:
            data = self._whole[begin:end]
        else:
            if self._aside is None:
                self._aside = memoryview(bytearray(MAX_JOINED_BYTES))
            data = self._aside[:length]
        self._take(data)
        if (got := checksum(data)) != total:
            where = f"{self._connection.where}: ranges {first} to {stop}"
            what = f"{where}: checksum {got:#018x}, want {total:#018x}"
            self.errors.update(dict.fromkeys(range(first, stop), PageCorrupt(what)))
            return
        if self._whole is None:
            at = 0
            for view in self._wanted[first:stop]:
                view[:] = data[at : at + len(view)]
                at += len(view)
        self.done[first:stop] = b"\1" * (stop - first)

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

    def _head_arrived(self) -> bool:
        """False at the end of the body."""
        got = self._connection.receive_into(self._head)
        if 0 < got < RANGE_FRAME.size:
            raise self._protocol("the body ended inside a frame")
        return got > 0

    def _take(self, view: memoryview) -> None:
        if self._connection.receive_into(view) != len(view):
            raise self._protocol("the body ended inside a frame")

    def _protocol(self, what: str) -> WorkerUnavailable:
        return WorkerUnavailable(f"{self._connection.where}: {what}", reason="protocol")
