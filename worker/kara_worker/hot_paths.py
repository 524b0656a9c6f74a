"""Which files are read most, in bounded memory: Space-Saving (Metwally, Agrawal, El Abbadi, ICDT 2005).

One read in `SAMPLE` is counted, so that hits pay almost nothing. A count is too high by at most the smallest
count that is kept. Counts are halved now and then: what was hot yesterday leaves.
"""

from __future__ import annotations

SAMPLE = 64
_KEPT = 128
_HALVE_AFTER = 1 << 14  # counted reads, about a million reads


class HotPaths:
    """Event loop only."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._turn = 0
        self._counted = 0

    def read(self, path: str) -> None:
        """For every read."""
        self._turn += 1
        if self._turn >= SAMPLE:
            self._turn = 0
            self._count(path)

    def _count(self, path: str) -> None:
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

    def top(self, limit: int) -> list[tuple[str, int]]:
        """Path and about how many reads, most first."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [(path, count * SAMPLE) for path, count in ranked[:limit]]
