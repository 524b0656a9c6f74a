"""Which files are read most, and which were read last, in bounded memory.

Most: Space-Saving (Metwally, Agrawal, El Abbadi, ICDT 2005). One read in `SAMPLE` is counted, so that hits
pay almost nothing. A count is too high by at most the smallest count that is kept. Counts are halved
now and then: what was hot yesterday leaves.

Last: two generations of files. The older one is forgotten when the younger one is full, so that a hit pays
for one entry in a dictionary and nothing is ever sorted.
"""

from __future__ import annotations

from typing import Protocol

SAMPLE = 64
_KEPT = 128
_HALVE_AFTER = 1 << 14  # counted reads, about a million reads
_LATELY = 1 << 15  # files of a generation: 3 GB of images of 100 kB, at 400 bytes each


class ReadFile(Protocol):
    """One version of one file."""

    @property
    def path(self) -> str: ...

    @property
    def file_id(self) -> bytes: ...

    @property
    def size(self) -> int: ...


class HotPaths:
    """Event loop only."""

    def __init__(self) -> None:
        self._younger: dict[bytes, ReadFile] = {}  # by file id
        self._older: dict[bytes, ReadFile] = {}
        self._counts: dict[str, int] = {}
        self._turn = 0
        self._counted = 0

    def read(self, file: ReadFile) -> None:
        """For every read."""
        self.seen(file)
        self._turn += 1
        if self._turn >= SAMPLE:
            self._turn = 0
            self.sampled(file.path)

    def seen(self, file: ReadFile) -> None:
        """The half of `read` that is about the last ones: once in a while for a file is enough."""
        self._younger[file.file_id] = file
        if len(self._younger) > _LATELY:
            self._older, self._younger = self._younger, {}

    def sampled(self, path: str) -> None:
        """The other half, for one read in `SAMPLE`."""
        counts = self._counts
        if path in counts or len(counts) < _KEPT:
            counts[path] = counts.get(path, 0) + 1
        else:
            least = min(counts, key=counts.__getitem__)
            counts[path] = counts.pop(least) + 1
        self._counted += 1
        if self._counted >= _HALVE_AFTER:
            self._counted = 0
            self._counts = {path: count // 2 for path, count in counts.items() if count > 1}

    def lately(self) -> list[ReadFile]:
        """The files that were read last, about the newest first."""
        older = (file for file_id, file in reversed(self._older.items()) if file_id not in self._younger)
        return [*reversed(self._younger.values()), *older]

    def top(self, limit: int) -> list[tuple[str, int]]:
        """Path and about how many reads, most first."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [(path, count * SAMPLE) for path, count in ranked[:limit]]
