"""Faults that a test scripts into the OSS server, and the log of what the server was asked."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, replace
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request; without a `status` it is carried out and its answer spoiled."""

    status: int | None = None  # answer this error, do nothing
    code: str = "InternalError"
    retry_after_s: int | None = None
    delay_s: float = 0.0  # before the first byte of the answer
    cut_after: int | None = None  # bytes of the body, then the connection ends ...
    reset: bool = False  # ... by RST instead of FIN
    lost: bool = False  # carried out, but the connection ends before any byte of the answer
    flip: bool = False  # every byte of the body inverted, headers as if it were right
    shift: int = 0  # body and Content-Range are of a range so many bytes further on
    ignore_range: bool = False  # 200 with the whole object
    drop_etag: bool = False  # no ETag in the answer

    @classmethod
    def error(cls, status: int, code: str, *, retry_after_s: int | None = None) -> Fault:
        return cls(status=status, code=code, retry_after_s=retry_after_s)

    @classmethod
    def slow(cls, delay_s: float) -> Fault:
        return cls(delay_s=delay_s)

    @classmethod
    def truncated(cls, after: int) -> Fault:
        return cls(cut_after=after)

    @classmethod
    def reset_after(cls, after: int) -> Fault:
        return cls(cut_after=after, reset=True)


@dataclass(slots=True)
class _Scripted:
    fault: Fault
    times: int
    skip: int
    method: str | None
    key: str | None


class FaultScript:
    """Which of the coming requests fail, first scripted first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _scripted
        self._scripted: list[_Scripted] = []

    def add(
        self,
        fault: Fault,
        *,
        times: int = 1,
        skip: int = 0,
        method: str | None = None,
        key: str | None = None,
    ) -> None:
        """The next `times` requests with this method and key (None: any), after `skip` that pass."""
        with self._lock:
            self._scripted.append(_Scripted(fault, times, skip, method, key))

    def take(self, method: str, key: str) -> Fault | None:
        with self._lock:
            for entry in self._scripted:
                if entry.method not in (None, method) or entry.key not in (None, key):
                    continue
                if entry.skip:
                    entry.skip -= 1
                    continue
                entry.times -= 1
                if not entry.times:
                    self._scripted.remove(entry)
                return entry.fault
        return None

    def clear(self) -> None:
        with self._lock:
            self._scripted.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._scripted)


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    method: str
    bucket: str
    key: str
    query: str  # as it came, without "?"
    range: str  # the header, "" without
    status: int
    bytes_sent: int  # of the body that was offered, faults considered
    at_s: float  # seconds since the epoch


class RequestLog:
    """Every request, in the order they were answered; an entry is there before its last byte is sent."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._lock = threading.Lock()  # guards _requests and the file
        self._requests: list[LoggedRequest] = []
        self._file = file

    def add(self, request: LoggedRequest) -> None:
        with self._lock:
            if self._file is None:
                self._requests.append(request)
            else:  # a demo runs for hours: the file is the log
                self._file.write(json.dumps(asdict(replace(request, at_s=round(request.at_s, 6)))) + "\n")
                self._file.flush()

    def all(self) -> list[LoggedRequest]:
        with self._lock:
            return list(self._requests)

    def data_gets(self) -> list[LoggedRequest]:
        """The requests that asked for bytes of an object: what a cache exists to save."""
        return [r for r in self.all() if r.method == "GET" and r.key and not r.query]

    def count(self, method: str) -> int:
        return sum(1 for r in self.all() if r.method == method)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()
