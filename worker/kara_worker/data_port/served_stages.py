"""A worker's part of the time of one read, told to the client (`kara_cache.read_stages`)."""

from __future__ import annotations

import time

from kara_cache.read_stages import REST_S, encode_stages
from kara_worker.fill import Fill


class ServedStages:
    """Made when the request begins. Event loop only. A moment counts once: stages never overlap."""

    def __init__(self) -> None:
        self._began = self._upto = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def __str__(self) -> str:
        return encode_stages(self._seconds)

    def opened(self) -> None:
        """Until now pages were looked up, opened and read."""
        self._add("disk", time.perf_counter())

    def sent_from_disk(self) -> None:
        """The body goes out straight from a disk that has to be read first."""
        self._seconds["disk"] = REST_S

    def filled(self, fill: Fill) -> None:
        """Until now the request waited for a fill and passed its bytes on."""
        now = time.perf_counter()
        if fill.began < self._began:  # somebody else's
            self._add("wait", now)
            return
        self._add("queue", fill.asked_at)
        self._add("store_first", fill.first_at)
        self._add("store_body", now)

    def _add(self, stage: str, until: float) -> None:
        if until > self._upto:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + until - self._upto
            self._upto = until
