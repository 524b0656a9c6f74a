"""Saves or loads a directory and kills itself in front of the n-th step that others could see.

    python object_child.py save|load URL OPTIONS DIRECTORY N

A step is a change of a file system or a call of an object store. Prints the version and the number of
steps when N is never reached.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

from kara_cache.storage import objects
from kara_cache.storage.location import open_location
from kara_cache.ufs.object_store import ObjectStore

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


STORE = ("write", "open_writer", "info", "read_into")


def main(action: str, url: str, options: dict[str, Any], directory: str, fatal: int) -> None:
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
    for name in STORE:
        setattr(ObjectStore, name, counted(getattr(ObjectStore, name)))
    location = open_location(url, **options)
    run = objects.save_directory if action == "save" else objects.load_directory
    version = run(location, "ns", "key", directory, progress_bar=False, threads=3)
    print(version, last)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
