"""Saves a directory and kills itself when the store has the n-th part of a file, or the n-th MiB on file://.

python upload_child.py URL OPTIONS DIRECTORY N
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
from kara_cache.storage.objects import save
from kara_cache.ufs import object_writer


def main(url: str, options: dict[str, Any], directory: str, fatal: int, part_bytes: int) -> None:
    object_writer.PART_BYTES = save.PART_BYTES = part_bytes
    numbers, lock = count(1), threading.Lock()

    def counted(send: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done = send(*arguments)
            with lock:
                if next(numbers) == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call

    owner, name = sender(url)
    setattr(owner, name, counted(getattr(owner, name)))
    objects.save_directory(open_location(url, **options), "ns", "key", directory, progress_bar=False)


def sender(url: str) -> tuple[Any, str]:
    if url.startswith("file:"):
        return os, "pwrite"
    if url.startswith("oss:"):
        from kara_cache.ufs.oss import OssApi

        return OssApi, "put_part"
    from kara_cache.ufs.s3 import S3Api

    return S3Api, "put_part"


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
