"""What a client takes of a DataLoader worker's memory: `python -m benchmarks.loader_memory GIVEN`.

GIVEN is JSON: {"protocol", "options", "files": [paths], "big": path}. The file system is made before the
workers are forked, as programs do. Each worker reads its part of the files, shuffled, three times over, and
then the big file 1 MiB at a time; after each of the four it says how much memory is its own alone (what
it shares with its parent, or with the kernel's copies of files, is not). Prints them: {"epochs": [bytes],
"big": bytes}, of the worker that has most.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

WORKERS = 2
EPOCHS = 3
STEP_BYTES = 1 << 20


class Parts(IterableDataset[int]):
    """Numbers of bytes, one for each epoch and one for the big file."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.fs = fsspec.filesystem(given["protocol"], **given["options"])
        self.files: list[str] = given["files"]
        self.big: str = given["big"]

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        assert worker is not None
        for epoch in range(EPOCHS):
            for number in range(worker.id, len(self.files), worker.num_workers):
                with self.fs.open(self.files[(number * 7919 + epoch) % len(self.files)], "rb") as file:
                    file.read()
            yield private_bytes()
        with self.fs.open(self.big, "rb") as file:
            while file.read(STEP_BYTES):
                pass
            yield private_bytes()


def private_bytes() -> int:
    """Of this process: what would be free if it alone ended."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(size) << 10 for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.M))


def main(given: str) -> None:
    # what each yields comes alone, so that nothing but reads is in the workers' memory
    loader = DataLoader(Parts(json.loads(given)), batch_size=None, num_workers=WORKERS)
    found = [int(size) for size in loader]
    *epochs, big = (max(found[at : at + WORKERS]) for at in range(0, len(found), WORKERS))
    print(json.dumps({"epochs": epochs, "big": big}))


if __name__ == "__main__":
    main(sys.argv[1])
