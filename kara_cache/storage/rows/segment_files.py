"""The end of a stream on this machine's disk: segments that are appended to, synced, and cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from kara_cache.errors import FormatError
from kara_cache.storage.rows.segments import SUFFIX

_GATHERED = 1024  # pieces in one writev(2), IOV_MAX of Linux
_GATHERED_BYTES = 512  # on average; smaller ones cost the kernel more than the copy


class SegmentFiles:
    """`N.blk` of one directory, for one writer.

    Like the published package a segment is filled to the last byte, whatever is cut in two by that, and
    the next one is made at once. A last segment that is longer than ours may be is left as it is.
    """

    def __init__(self, directory: str, max_bytes: int) -> None:
        """Makes the directory. Raises FormatError for segments behind a gap, which we would uncover."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._sizes = _sizes(directory)
        self._files: dict[int, int] = {}  # descriptors of segments that were written to since the last sync
        self._made = False  # files, since the last sync
        self.size = sum(self._sizes)

    def append(self, data: bytes | memoryview) -> None:
        """Adds bytes; durable after `sync`."""
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                if not self._sizes or self._sizes[-1] >= self._max_bytes:
                    self._begin()
                room = self._max_bytes - self._sizes[-1]
                with view[done : done + room] as part:
                    written = os.write(self._file(len(self._sizes) - 1), part)
                self._sizes[-1] += written
                self.size += written
                done += written
                if self._sizes[-1] == self._max_bytes:
                    self._begin()

    def append_all(self, pieces: Sequence[bytes]) -> None:
        """The same for several; those of some size go to the kernel without a copy that joins them."""
        size = sum(map(len, pieces))
        room = self._max_bytes - self._sizes[-1] if self._sizes else 0
        if size >= room or size < len(pieces) * _GATHERED_BYTES:
            self.append(b"".join(pieces))
            return
        file = self._file(len(self._sizes) - 1)
        for first in range(0, len(pieces), _GATHERED):
            part = pieces[first : first + _GATHERED]
            written = os.writev(file, part)
            self._sizes[-1] += written
            self.size += written
            if written < sum(map(len, part)):
                self.append(b"".join(part)[written:])
                file = self._file(len(self._sizes) - 1)

    def begin(self) -> None:
        """At least one segment is there."""
        if not self._sizes:
            self._begin()

    def cut(self, size: int) -> None:
        """Makes the stream end at byte `size`; the last segments go first, so that there is never a gap."""
        while self._sizes and self.size > size:
            last = len(self._sizes) - 1
            surplus = self.size - size
            if self._sizes[last] <= surplus and last:
                self._close(last)
                os.unlink(self._name(last))
                self.size -= self._sizes.pop()
                self._made = True
            else:
                os.ftruncate(self._file(last), self._sizes[last] - surplus)
                self._sizes[last] -= surplus
                self.size = size

    def sync(self) -> None:
        """Everything that was done is durable when it returns."""
        for number in list(self._files):
            os.fsync(self._files[number])
            if number != len(self._sizes) - 1:  # it is full
                self._close(number)
        if self._made:
            sync_directory(self._directory)
            self._made = False

    def close(self) -> None:
        """Idempotent; syncs nothing."""
        for number in list(self._files):
            self._close(number)

    def _begin(self) -> None:
        self._sizes.append(0)
        self._file(len(self._sizes) - 1)
        self._made = True

    def _file(self, number: int) -> int:
        file = self._files.get(number)
        if file is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            file = self._files[number] = os.open(self._name(number), flags, 0o666)
        return file

    def _close(self, number: int) -> None:
        file = self._files.pop(number, None)
        if file is not None:
            os.close(file)

    def _name(self, number: int) -> str:
        return f"{self._directory}/{number}{SUFFIX}"


def make_directories(path: str) -> None:
    """`path` and its parents, durable."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for made in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(made)
        sync_directory(os.path.dirname(made))


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sizes(directory: str) -> list[int]:
    make_directories(directory)
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            number = entry.name.removesuffix(SUFFIX)
            if number.isdecimal() and entry.name == f"{int(number)}{SUFFIX}":
                found[int(number)] = entry.stat().st_size
    check_no_gap(found, directory)
    return [found[number] for number in sorted(found)]


def check_no_gap(numbers: dict[int, int], directory: str) -> None:
    """Raises FormatError naming what is missing."""
    if numbers and max(numbers) >= len(numbers):
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        raise FormatError(
            f"{directory}: {missing}{SUFFIX} is missing, and {max(numbers)}{SUFFIX} is there: "
            "readers end at the gap, and writing would join what does not belong together"
        )
