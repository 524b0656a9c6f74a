"""Reads through a peer on request, in the peer's own environment: `python reading.py MODULE OPTIONS`.

Requests come as JSON lines on stdin, answers go as JSON lines to stdout:

    {"prepare": length, "places": [...]}    reads each place once: {"sha256": of all of it}
    {"seconds": s}                          reads for so long: {"p50", "p99", "mean", "cpu"} in us, "calls"
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from time import perf_counter, process_time
from typing import Any


def measure(
    read: Callable[[int, int], Any], length: int, places: Iterator[int], seconds: float
) -> dict[str, float]:
    times: list[float] = []
    cpu = process_time()
    began = last = perf_counter()
    while last - began < seconds or len(times) < 3:
        read(length, next(places))
        now = perf_counter()
        times.append(now - last)
        last = now
    cpu = process_time() - cpu
    times.sort()
    return {
        "p50": times[len(times) // 2] * 1e6,
        "p99": times[len(times) * 99 // 100] * 1e6,
        "mean": (last - began) / len(times) * 1e6,
        "cpu": cpu / len(times) * 1e6,
        "calls": float(len(times)),
    }


def digest(read: Callable[[int, int], Any], length: int, places: Sequence[int]) -> str:
    total = hashlib.sha256()
    for start in places:
        total.update(read(length, start))
    return total.hexdigest()


class _Session:
    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._length = 0
        self._places: Iterator[int] = iter(())

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "prepare" in request:
            self._length, places = request["prepare"], request["places"]
            if hasattr(self._reader, "prepare"):
                self._reader.prepare(self._length, places)
            self._places = cycle(places)
            return {"sha256": digest(self._reader.read, self._length, places)}
        return measure(self._reader.read, self._length, self._places, request["seconds"])


def main(module: str, options: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some clients print

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        session = _Session(importlib.import_module(module).Reader(json.loads(options)))
        say({"ready": os.getpid()})
        for line in sys.stdin:
            say(session.answer(json.loads(line)))
    except Exception as exc:
        say({"error": f"{type(exc).__name__}: {exc}"[:500]})
        raise
    finally:
        answers.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
