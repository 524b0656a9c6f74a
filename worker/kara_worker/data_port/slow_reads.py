"""The slowest reads that clients told this worker of, with what the stores usually take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from kara_cache.errors import FormatError
from kara_cache.read_stages import SlowRead, cause_of, decode_slow_read

_KEPT = 512
_AT_ONCE = 64


class SlowReads:
    """Event loop only."""

    def __init__(self, usual_store_s: Callable[[str], float]) -> None:
        """`usual_store_s`: mount -> mean time of a request to its store."""
        self._usual_store_s = usual_store_s
        self._reads: deque[SlowRead] = deque(maxlen=_KEPT)

    def add(self, documents: Any) -> None:
        """What one client told at once; FormatError, and nothing added, if it is bad."""
        if not isinstance(documents, list) or len(documents) > _AT_ONCE:
            raise FormatError(f"slow reads: expected a list of at most {_AT_ONCE}")
        self._reads.extend([decode_slow_read(document) for document in documents])

    def told(self, allowed: Callable[[str], bool]) -> list[dict[str, Any]]:
        """Those whose path the caller may read, slowest first, each with its cause."""
        reads = sorted((read for read in self._reads if allowed(read.path)), key=lambda read: -read.total_s)
        return [read.document() | {"cause": self._cause(read)} for read in reads]

    def _cause(self, read: SlowRead) -> str:
        return cause_of(read.stages, self._usual_store_s(read.path.split("/", 2)[1]))
