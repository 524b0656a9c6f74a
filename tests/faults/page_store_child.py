"""A page store in a process of its own, to be killed and lied to: started, asked and traced by the tests.

As a program it reads commands from stdin and answers each with one line of JSON:
`python page_store_child.py ROOT CAPACITY_BYTES KIND [SEGMENT_BYTES]`, then `put N`, `get N`, `verify N`,
`drop N`, `stats`, `probe`.
Page N is `make_page("/m/f", N)`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from page_data import PAGE_BYTES, Page, make_page, read
from traced import traced

from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.segments.page_store import SegmentPageStore

TIMEOUT_S = 60.0


def page_number(number: int) -> Page:
    return make_page("/m/f", number)


Store = FilePageStore | SegmentPageStore


def open_store(
    root: Path | str, capacity_bytes: int, kind: str = "files", segment_bytes: int | None = None
) -> Store:
    """`segment_bytes` is for segments; by default a segment is as small as can be."""
    policy = LeastRecentlyUsed()
    if kind == "files":
        return FilePageStore([root], capacity_bytes, PAGE_BYTES, policy, min_free_bytes=0)
    return SegmentPageStore(
        [root], capacity_bytes, PAGE_BYTES, policy, min_free_bytes=0, segment_bytes=segment_bytes or 1
    )


class Child:
    """The running program. A context manager: it is killed in the end."""

    def __init__(
        self,
        root: Path,
        capacity_bytes: int = 1 << 30,
        kind: str = "files",
        segment_bytes: int | None = None,
    ) -> None:
        options = [str(capacity_bytes), kind, *([str(segment_bytes)] if segment_bytes else [])]
        here = str(Path(__file__).parents[1])
        self._alive = True
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(root), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": here},
        )
        try:
            assert self._answer() == "ready"
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=TIMEOUT_S)

    def ask(self, command: str) -> Any:
        """What it answers; None if it died instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._alive = False
            return None
        return self._answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT_S)

    def killed(self) -> bool:
        return self._process.wait(TIMEOUT_S) == -signal.SIGKILL

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT_S)
        assert ready, f"no answer within {TIMEOUT_S} s"
        line = self._process.stdout.readline()
        self._alive = bool(line)
        return json.loads(line) if line else None

    def traced(self, inject: str) -> AbstractContextManager[None]:
        """With `strace -e inject=...` attached to all its threads, counting from now."""
        return traced(self._process.pid, inject, alive=lambda: self._alive)


def main() -> None:
    segment_bytes = int(sys.argv[4]) if len(sys.argv) > 4 else None
    store = open_store(sys.argv[1], int(sys.argv[2]), sys.argv[3], segment_bytes)
    list(store.files())  # everything is listed before the first command
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        verb, _, number = line.strip().partition(" ")
        answer: object
        if verb == "put":
            header, data = page_number(int(number))
            answer = store.put(header, data, group="m")
        elif verb == "get":
            stored = store.get(page_number(int(number))[0].page)
            answer = None if stored is None else read(stored) == bytes(page_number(int(number))[1])
        elif verb == "verify":
            answer = store.verify(page_number(int(number))[0].page)
        elif verb == "drop":
            answer = store.drop(page_number(int(number))[0].page, "free")
        elif verb == "probe":
            answer = store.probe()
        else:
            answer = dataclasses.asdict(store.stats())
        print(json.dumps([answer]), flush=True)


if __name__ == "__main__":
    main()
