"""Where the time of one read went, by stage. Pure.

    detour       attempts that failed: a dead owner, a corrupt page
    connect      a new connection to the worker that answered
    queue        the worker waited for memory for its fill
    wait         another reader's fill of the same page was on its way
    store_first  from the worker's request to the store's first byte
    store_body   the rest of the store's answer
    disk         the worker's disk
    network      between the worker and us, its turn in the worker's loop included
    verify       checksums in this process
    other        what is left: this process, its copies, its locks

The worker tells its part in one header or trailer, `STAGES_HEADER: wait=0.0123,disk=0.2`, seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kara_cache.errors import FormatError

REST_S = 999_999.0
"""Told by a worker for a stage whose end it will not see before its answer is out: all that is left."""
WORKER_STAGES = ("queue", "wait", "store_first", "store_body", "disk")
STAGES = ("detour", "connect", *WORKER_STAGES, "network", "verify", "other")
MAX_PATH = 1024
_USUAL = 3.0  # times a mount's mean request: beyond it the store is called slow, not the page cold


class Marks:
    """What one attempt measured, in seconds. Made for every read, so what is not known yet is the class's."""

    connect_s: float = 0.0
    complete: float = 0.0  # monotonic; when the last byte of the body had come
    answer_s: float = 0.0  # from the request to then; worked out only if the read was slow, as all below
    verify_s: float = 0.0
    hit: bool | None = None  # a worker answered from its SSD, or from a store
    fields: bytes = b""  # of the answer: the worker's own part is among them
    worker: Mapping[str, float] | None = None
    trace: bytes = b""  # header lines of a trace that the worker shall go on with
    answered: str = ""  # worker; kept where reads have spans


@dataclass(frozen=True, slots=True)
class SlowRead:
    """One read and its stages, which sum to `total_s`."""

    at: float  # seconds since the epoch, its end
    path: str
    start: int
    length: int
    worker: str  # who answered
    total_s: float
    stages: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "path": self.path[:MAX_PATH],
            "start": self.start,
            "length": self.length,
            "worker": self.worker,
            "total_s": self.total_s,
            "stages": {name: seconds for name, seconds in self.stages.items() if seconds > 0},
        }


def stages_of(marks: Marks, *, total_s: float, detour_s: float) -> dict[str, float]:
    """Every stage. The worker's own clock may run into ours by rounding: then its part is cut to fit."""
    worker = dict(marks.worker or {})
    told_s = sum(worker.values())
    if told_s > marks.answer_s > 0:
        worker = {name: seconds * marks.answer_s / told_s for name, seconds in worker.items()}
        told_s = marks.answer_s
    found = {"detour": detour_s, "connect": marks.connect_s, **worker}
    found |= {"network": marks.answer_s - told_s, "verify": marks.verify_s}
    found["other"] = max(0.0, total_s - sum(found.values()))
    return {name: found.get(name, 0.0) for name in STAGES}


def cause_of(stages: Mapping[str, float], usual_store_s: float) -> str:
    """The largest stage in words; `usual_store_s` is the mean time of a store request of the same mount."""
    store_s = stages.get("store_first", 0.0) + stages.get("store_body", 0.0)
    merged = {name: seconds for name, seconds in stages.items() if not name.startswith("store_")}
    merged["store"] = store_s
    name = max(merged, key=lambda stage: merged[stage])
    if name == "store":
        return "slow store" if usual_store_s and store_s > _USUAL * usual_store_s else "cold page"
    return _WORDS[name]


_WORDS = {
    "detour": "dead owner",
    "connect": "new connection",
    "queue": "no memory for fills",
    "wait": "another's fill",
    "disk": "slow disk",
    "network": "network or busy worker",
    "verify": "checksums",
    "other": "this process",
}


def encode_stages(stages: Mapping[str, float]) -> str:
    return ",".join(f"{name}={seconds:.6f}" for name, seconds in stages.items() if seconds > 0)


def parse_stages(text: str) -> dict[str, float]:
    """What cannot be read is left out: times are no reason to lose a read."""
    found: dict[str, float] = {}
    for item in text.split(",")[: len(WORKER_STAGES)]:
        name, _, value = item.partition("=")
        try:
            seconds = float(value)
        except ValueError:
            continue
        if name in WORKER_STAGES and 0 <= seconds < 1e6:
            found[name] = seconds
    return found


def decode_slow_read(document: Any) -> SlowRead:
    """From another process. Raises FormatError."""
    try:
        stages = {str(name): float(value) for name, value in dict(document["stages"]).items()}
        read = SlowRead(
            float(document["at"]),
            str(document["path"]),
            int(document["start"]),
            int(document["length"]),
            str(document["worker"])[:64],
            float(document["total_s"]),
            stages,
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise FormatError(f"slow read: {exc!r}") from exc
    if not read.path.startswith("/") or len(read.path) > MAX_PATH or not set(stages) <= set(STAGES):
        raise FormatError(f"slow read: path {read.path[:80]!r}, stages {sorted(stages)[:12]}")
    return read
