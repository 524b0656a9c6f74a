"""A load job on one of its workers, and one batch of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kara_worker.jobs.batch import Failure, Outcome
from kara_worker.jobs.throttle import Throttle


@dataclass(slots=True)
class Visit:
    """A job as this worker knows it."""

    bandwidth: Throttle
    rate: Throttle
    held: set[bytes] = field(default_factory=set)  # files that are sheltered until the job ends
    running: set[asyncio.Task[Outcome]] = field(default_factory=set)
    seen: float = 0.0  # monotonic


@dataclass(slots=True)
class Count:
    """Of one batch, while it runs."""

    pages: int = 0
    present: int = 0
    fetched: int = 0
    bytes_fetched: int = 0
    requests: int = 0
    failures: list[Failure] = field(default_factory=list)
