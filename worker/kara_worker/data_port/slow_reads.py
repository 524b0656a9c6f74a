"""The slowest reads that clients told this worker of, with what the stores usually take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kara_cache.errors import FormatError
from kara_cache.read_stages import SlowRead, cause_of, decode_slow_read

_KEPT = 512
_AT_ONCE = 64


def slow_reads_of(document: Any) -> list[SlowRead]:
    """Those in what one client told at once (POST /client-metrics); FormatError if they are bad."""
    told = document.get("slow_reads") if isinstance(document, dict) else None
    if told is None:
        return []
    if not isinstance(told, list) or len(told) > _AT_ONCE:
        raise FormatError(f"slow reads: expected a list of at most {_AT_ONCE}")
    return [decode_slow_read(one) for one in told]


class SlowReads:
    """Event loop only."""

    def __init__(self, usual_store_s: Callable[[str], float]) -> None:
        """`usual_store_s`: mount -> mean time of a request to its store."""
        self._usual_store_s = usual_store_s
        self._reads: deque[SlowRead] = deque(maxlen=_KEPT)

    def add(self, reads: Iterable[SlowRead]) -> None:
        self._reads.extend(reads)

    def told(self, allowed: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Those whose path the caller may read, slowest first, each with its cause."""
        reads = sorted((read for read in self._reads if allowed(read.path)), key=lambda read: -read.total_s)
        return [read.document() | {"cause": self._cause(read)} for read in reads]

    def _cause(self, read: SlowRead) -> str:
        return cause_of(read.stages, self._usual_store_s(read.path.split("/", 2)[1]))
