"""Whether every blob of a version is in the store and right, by reading all of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

from kara_cache.storage.objects.blob_store import BlobStore
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree
from kara_cache.storage.objects.partial_blob import PART_BYTES
from kara_cache.storage.objects.progress import Bar
from kara_cache.storage.objects.transfer_pool import TransferPool


@dataclass(frozen=True, slots=True)
class Problem:
    """A blob that is not what its name says, and the files that would have it."""

    blob: str
    what: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    version: str
    files: int
    blobs: int
    size: int  # bytes of the blobs, each once
    problems: tuple[Problem, ...]


def verify_tree(blobs: BlobStore, version: str, tree: ObjectTree, pool: TransferPool, *, bar: Bar) -> Verdict:
    problems: list[Problem] = []
    lock = threading.Lock()  # guards problems

    def check(blob: Blob, files: list[FileEntry]) -> None:
        what = blobs.problem(blob, pool)
        if what:
            with lock:
                problems.append(Problem(blob.name, what, tuple(file.name for file in files)))
        bar.update(blob.size)

    wanted = tree.blobs
    pool.run((min(blob.size, PART_BYTES), partial(check, blob, files)) for blob, files in wanted.items())
    problems.sort(key=lambda problem: problem.files)
    size = sum(blob.size for blob in wanted)
    return Verdict(version, len(tree.files), len(wanted), size, tuple(problems))
