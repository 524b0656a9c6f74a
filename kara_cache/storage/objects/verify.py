"""Whether a version is whole, in the store or in a local directory, by reading all of it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import partial

from kara_cache.storage.objects.blob_digest import CHUNK_BYTES, digest_of
from kara_cache.storage.objects.blob_store import BlobStore
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree
from kara_cache.storage.objects.partial_blob import PART_BYTES
from kara_cache.storage.objects.progress import Bar
from kara_cache.storage.objects.target_tree import TargetTree
from kara_cache.storage.objects.transfer_pool import TransferPool


@dataclass(frozen=True, slots=True)
class Problem:
    """A blob that is not what its name says, and the files that have it; or a local file that differs."""

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
    return _verdict(version, tree, problems)


def verify_local(
    target: TargetTree, version: str, tree: ObjectTree, pool: TransferPool, *, bar: Bar
) -> Verdict:
    """Of the files that the version has; others in the directory are not looked at."""
    problems: list[Problem] = []
    lock = threading.Lock()  # guards problems

    def check(file: FileEntry) -> None:
        descriptor = target.open_existing(file)
        what = "missing, not readable, or of another size"
        if descriptor is not None:
            try:
                right = digest_of(descriptor, pool) == file.blob
            finally:
                os.close(descriptor)
            what = "" if right else "other bytes"
        if what:
            with lock:
                problems.append(Problem(file.blob.name, what, (file.name,)))
        bar.update(file.blob.size)

    pool.run((CHUNK_BYTES, partial(check, file)) for file in tree.files)
    return _verdict(version, tree, problems)


def _verdict(version: str, tree: ObjectTree, problems: list[Problem]) -> Verdict:
    problems.sort(key=lambda problem: problem.files)
    size = sum(blob.size for blob in tree.blobs)
    return Verdict(version, len(tree.files), len(tree.blobs), size, tuple(problems))
