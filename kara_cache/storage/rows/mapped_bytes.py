"""A stream of rows on this machine's disk, mapped into memory."""

from __future__ import annotations

import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, count, pairwise
from math import inf

from kara_cache.errors import FormatError
from kara_cache.storage.rows.joined_mapping import map_joined
from kara_cache.storage.rows.segments import SUFFIX


class MappedBytes:
    """A `ByteStream` over `N.blk` of one directory, as many bytes as there were when it was opened.

    Segments only ever grow, and what is mapped is never rewritten, so readers need no lock against the
    writer. A file that somebody cuts while it is mapped ends the process with SIGBUS (mmap(2)).
    """

    def __init__(self, directory: str) -> None:
        """Without such a directory the stream is empty."""
        self.directory = directory
        self.segments = _map_all(directory)
        ends = list(accumulate(map(len, self.segments)))
        self.size = ends[-1] if ends else 0
        # Of each segment: its bytes, where it begins, where it ends.
        # The end of the stream is a segment, too, so that what begins there needs no case of its own.
        self.parts: list[mmap.mmap | bytes] = [*self.segments, b""]
        self.bases = [0, *ends]
        self.ends: list[float] = [*ends, inf]
        self._only = self.segments[0] if len(self.segments) == 1 else None

    def __repr__(self) -> str:
        return f"<MappedBytes {self.directory}: {self.size} bytes in {len(self.segments)} segments>"

    def read(self, start: int, stop: int) -> bytes:
        if self._only is not None and 0 <= start <= stop:
            return self._only[start:stop]
        self._check(start, stop)
        segment = bisect_right(self.ends, start)
        found = self.parts[segment][start - self.bases[segment] : stop - self.bases[segment]]
        if stop <= self.ends[segment]:
            return found
        pieces = [found]
        for part, base in zip(self.parts[segment + 1 :], self.bases[segment + 1 :], strict=True):
            if base >= stop:
                break
            pieces.append(part[: stop - base])
        return b"".join(pieces)

    def read_spans(self, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        only = self._only
        if only is not None:
            return [only[start:stop] for start, stop in zip(starts, stops, strict=True)]
        parts, bases, ends, read = self.parts, self.bases, self.ends, self.read
        found = []
        for start, stop in zip(starts, stops, strict=True):
            segment = bisect_right(ends, start)
            if stop <= ends[segment]:
                base = bases[segment]
                found.append(parts[segment][start - base : stop - base])
            else:
                found.append(read(start, stop))
        return found

    def read_summed(self, starts: Sequence[int], stops: Sequence[int], sums: Sequence[int]) -> None:
        """Nothing: here all spans are at hand."""

    def cut(self, cuts: Sequence[int]) -> list[bytes]:
        """What lies between each two neighbours of `cuts`, which ascend."""
        only = self._only
        if only is not None:
            return [only[start:stop] for start, stop in pairwise(cuts)]
        segment = bisect_right(self.ends, cuts[0])
        if cuts[-1] > self.ends[segment]:
            return self.read_spans(cuts[:-1], cuts[1:])
        part, base = self.parts[segment], self.bases[segment]
        return [part[start - base : stop - base] for start, stop in pairwise(cuts)]

    def read_into(self, start: int, buffer: memoryview | bytearray) -> int:
        view = memoryview(buffer).cast("B")
        self._check(start, start + len(view))
        done = 0
        segment = bisect_right(self.ends, start)
        while done < len(view) and segment < len(self.segments):
            at = start + done - self.bases[segment]
            length = min(len(view) - done, len(self.segments[segment]) - at)
            with memoryview(self.segments[segment]) as mapped, mapped[at : at + length] as part:
                view[done : done + length] = part
            done += length
            segment += 1
        return done

    def close(self) -> None:
        """Memory is given back when the last view of it is gone."""
        self.segments, self.parts, self.ends, self._only = [], [], [], None

    def _check(self, start: int, stop: int) -> None:
        if not self.ends:
            raise ValueError(f"{self.directory}: read of a closed stream")
        if start < 0 or stop < start:
            raise ValueError(f"{self.directory}: bytes [{start}, {stop}) are no part of a stream")


def _map_all(directory: str) -> list[mmap.mmap]:
    """One mapping where segments can be joined, else one for each that is not empty."""
    files, sizes = [], []
    try:
        for number in count():
            name = f"{directory}/{number}{SUFFIX}"
            try:
                files.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
            except (FileNotFoundError, NotADirectoryError):
                break
            status = os.fstat(files[-1])
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{name}: not a regular file")
            if status.st_size:  # a mapping cannot be empty
                sizes.append(status.st_size)
            else:
                os.close(files.pop())
        joined = map_joined(files, sizes) if len(files) > 1 else None
        if joined is not None:
            return [joined]
        return [
            mmap.mmap(file, size, access=mmap.ACCESS_READ) for file, size in zip(files, sizes, strict=True)
        ]
    finally:
        for file in files:
            os.close(file)
