"""What lies where in the segments of one directory, written down as it changes.

    index.<g>     everything at some time: frames, written aside, synced and renamed
    journal.<g>   what changed since that was begun: frames, appended

A frame is `bytes u32, kind u32, checksum u64` and so many bytes; the checksum covers the first eight
bytes and the rest. Reading ends at the first frame that is not whole: what a crash tore is cut off and
written over. Integers are little-endian.

    1 placed   n records of 36 bytes: file_id 16s, index u64, segment u32, place u64
    2 gone     the same: the page is not at that place any more
    3 file     file_id 16s, group 8s, path: before the first page of a file
    4 age      segment u32, oldest u32, newest u32: steps of 2**36 ns in which its pages were made

Every record says what is, not what changes, and `gone` counts only for the very place: so an index that
is written while pages come and go is right once the journal that was begun before it has been read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from sys import intern

from kara_cache.checksum import checksum
from kara_worker.eviction.base import PageKey
from kara_worker.pages.page_index import FileRecord
from kara_worker.segments.segment import PLACE_BITS

_HEAD = struct.Struct("<II")
_SUM = struct.Struct("<Q")
_WHOLE_HEAD = struct.Struct("<IIQ")  # with the sum
_PAGE = struct.Struct("<16sQIQ")
_FILE = struct.Struct("<16s8s")
_AGE = struct.Struct("<III")
_PLACED, _GONE, _FILED, _AGED = 1, 2, 3, 4
_BATCH = 2048  # records in a frame of an index
_MOST_FRAME_BYTES = 1 << 20
_CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

Placed = tuple[PageKey, int, int]  # page, number of the segment, place


class Journal:
    """Not thread-safe. Says what the last process that had it said, as far as that was whole."""

    def __init__(self, folder: str) -> None:
        """Reads what is there. Raises OSError."""
        self._folder = folder
        self.pages: dict[PageKey, int] = {}  # -> number of the segment << PLACE_BITS | place
        self.files: dict[bytes, FileRecord] = {}  # path and group of each, and nothing else yet
        self.ages: dict[int, tuple[int, int]] = {}  # segment -> oldest, newest
        self._ids: dict[bytes, bytes] = {}  # one copy of each
        self.records = 0  # in journals, since the last index
        generations = self._generations("index.")
        self._base = max(generations, default=0)
        if generations:
            self._read(self._path("index", self._base))
        journals = [number for number in self._generations("journal.") if number >= self._base]
        self._generation = max(journals, default=self._base)
        self._end, self.records = 0, 0
        for number in sorted(journals):
            self._end = self._read(self._path("journal", number))
        self._fd = os.open(self._path("journal", self._generation), _CREATE, 0o600)
        self._sweep()

    def forget_found(self) -> None:
        """What was read is in the books now."""
        self.pages, self.files, self.ages, self._ids = {}, {}, {}, {}

    def placed(self, records: Iterable[Placed], *, before: bytes = b"") -> None:
        """`before` are frames that are to be read first. Raises OSError; then nothing was written."""
        self._append(before + _frame(_PLACED, _pages(records)))

    def gone(self, records: Iterable[Placed]) -> None:
        """Raises OSError; then nothing was written."""
        self._append(_frame(_GONE, _pages(records)))

    def begin_index(self) -> None:
        """From now on changes go to a new journal. Raises OSError; then they do not."""
        number = self._generation + 1
        fd = os.open(self._path("journal", number), _CREATE | os.O_TRUNC, 0o600)
        os.close(self._fd)
        self._fd, self._generation, self._end = fd, number, 0
        self.records = 0

    def write_index(
        self, pages: Iterator[Placed], files: Iterable[FileRecord], ages: Iterable[tuple[int, int, int]]
    ) -> None:
        """Everything, as it was at or after `begin_index`. Raises OSError; the journals tell all of it, too.

        `files` is asked after all of `pages`.
        """
        path = self._path("index", self._generation)
        fd = os.open(path + ".new", _CREATE | os.O_TRUNC, 0o600)
        try:
            while batch := list(islice(pages, _BATCH)):
                _write(fd, _frame(_PLACED, _pages(batch)))
            frames = (file_frame(r.file_id, r.group, r.path or "") for r in files)
            while chunk := list(islice(frames, _BATCH)):
                _write(fd, b"".join(chunk))
            _write(fd, b"".join(age_frame(*age) for age in ages))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(path + ".new", path)
        self._base = self._generation
        self._sweep()

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, frames: bytes) -> None:
        count = os.pwrite(self._fd, frames, self._end)
        if count != len(frames):  # a disk that is full; the next frames are written over these
            count += os.pwrite(self._fd, frames[count:], self._end + count)
            if count != len(frames):
                raise OSError(28, "the journal could not be written whole", self._folder)
        self._end += count
        self.records += 1

    def _read(self, path: str) -> int:
        """The state after all whole frames of the file; where they end."""
        with open(path, "rb") as file:
            raw = (
                file.read()
            )  # bytes: there is a frame for each file, and views of it would take twice as long
        at, last, pages, ids = 0, len(raw) - 16, self.pages, self._ids.setdefault
        unpack, pages_of = _WHOLE_HEAD.unpack_from, _PAGE.iter_unpack
        while at <= last:
            size, kind, want = unpack(raw, at)
            payload = raw[at + 16 : at + 16 + min(size, _MOST_FRAME_BYTES)]
            if len(payload) != size or checksum(raw[at : at + 8] + payload) != want:
                break
            at += 16 + size
            self.records += 1
            if kind == _PLACED:
                for file_id, index, number, place in pages_of(payload):
                    pages[ids(file_id, file_id), index] = number << PLACE_BITS | place
            elif kind == _GONE:
                for file_id, index, number, place in pages_of(payload):
                    if pages.get(page := (file_id, index)) == number << PLACE_BITS | place:
                        del pages[page]
            elif kind == _FILED:
                file_id, group = _FILE.unpack_from(payload)
                name = payload[_FILE.size :].decode("utf-8", "surrogatepass")
                file_id = ids(file_id, file_id)
                # the token is the same for all files of a mount
                self.files[file_id] = FileRecord(file_id, name, intern(group.decode()))
            elif kind == _AGED:
                number, oldest, newest = _AGE.unpack(payload)
                self.ages[number] = oldest, newest
        return at

    def _generations(self, prefix: str) -> list[int]:
        names = (name.removeprefix(prefix) for name in os.listdir(self._folder) if name.startswith(prefix))
        return [int(name) for name in names if name.isdecimal()]

    def _sweep(self) -> None:
        """Removes what was replaced, and what a crash left half written."""
        for name in os.listdir(self._folder):
            kind, _, rest = name.partition(".")
            old = rest.isdecimal() and int(rest) < self._base
            half = rest.endswith(".new") and kind == "index"
            if kind in ("index", "journal") and (old or half):
                with suppress(FileNotFoundError):
                    os.unlink(f"{self._folder}/{name}")

    def _path(self, kind: str, generation: int) -> str:
        return f"{self._folder}/{kind}.{generation}"


def file_frame(file_id: bytes, group: str, path: str) -> bytes:
    return _frame(_FILED, _FILE.pack(file_id, group.encode()) + path.encode("utf-8", "surrogatepass"))


def age_frame(segment: int, oldest: int, newest: int) -> bytes:
    return _frame(_AGED, _AGE.pack(segment, oldest, newest))


def _pages(records: Iterable[Placed]) -> bytes:
    return b"".join([_PAGE.pack(page[0], page[1], number, place) for page, number, place in records])


def _frame(kind: int, payload: bytes) -> bytes:
    head = _HEAD.pack(len(payload), kind)
    return head + _sum(head, payload) + payload


def _sum(head: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    return _SUM.pack(checksum(bytes(head) + payload))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
