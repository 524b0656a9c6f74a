"""Giving back the space of what was deleted: LMDB uses it again, but its file never shrinks."""

from __future__ import annotations

import fcntl
import os

import lmdb

from kara_cache.storage.kv.environment import Environment


def prune(environment: Environment) -> None:
    """A compact copy takes the place of the data file, all at once.

    Nobody else may have the file open, because they would keep on writing to the one that is gone:
    LMDB locks the first byte of the lock file for as long as it is open, so we lock it, all of it.
    Raises TimeoutError where somebody has.
    """
    files = environment.files
    environment.writer_lock.acquire()
    try:
        with open(files.pruned, "wb") as copy:
            try:
                environment.handle().copyfd(copy.fileno(), compact=True)
            except lmdb.Error as exc:
                raise environment.failure("copy", exc) from exc
            os.fsync(copy.fileno())
        with environment.shut():
            with open(files.lock, "r+b") as lock:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as exc:
                    raise TimeoutError(f"{files.path}: another program has it open; prune it alone") from exc
                os.replace(files.pruned, files.data)
                _sync_directory(files.data.parent)
    finally:
        files.pruned.unlink(missing_ok=True)
        environment.writer_lock.release()


def _sync_directory(path: os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
