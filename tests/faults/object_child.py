"""Saves or loads a directory and kills itself in front of the n-th change it would make to a file system.

    python object_child.py save|load URL DIRECTORY N

Prints the version and the number of changes when N is never reached.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

from kara_cache.storage import objects
from kara_cache.storage.location import open_location

CHANGES = (
    "pwrite",
    "ftruncate",
    "fsync",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "sendfile",
    "utime",
    "fchmod",
)


def main(action: str, url: str, directory: str, fatal: int) -> None:
    numbers, lock = count(1), threading.Lock()
    last = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal last
            with lock:
                last = next(numbers)
                if last == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    location = open_location(url)
    run = objects.save_directory if action == "save" else objects.load_directory
    version = run(location, "ns", "key", directory, progress_bar=False, threads=3)
    print(version, last)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
