"""How LMDB opens the files of a database: with which limits, and what is tried where it may not do so."""

from __future__ import annotations

import logging
import os
from typing import Any

import lmdb

from kara_cache.storage.kv.failures import has_no_addresses, may_not_lock, translated
from kara_cache.storage.kv.files import DatabaseFiles
from kara_cache.storage.kv.reader import Lmdb

logger = logging.getLogger(__name__)

SMALLEST_MAP_BYTES = 1 << 20
MAX_TABLES = 126
MAX_READERS = 1024  # read transactions over all processes; 64 bytes each in the lock file


def opened(files: DatabaseFiles, *, readonly: bool, sync: bool, map_bytes: int) -> Lmdb:
    """With a map of `map_bytes`, or of a half, a quarter... where the process may not have as many addresses.

    Raises FormatError, OSError, KaraError, and ValueError where this process has the files open already.
    """
    size = map_bytes
    while True:
        try:
            found = _opened_with(files, size, readonly=readonly, sync=sync)
            found.reader_check()  # frees the slots of processes that died
            return found
        except (lmdb.Error, MemoryError) as exc:  # noqa: PERF203 - few times, when opened
            # An address space that is limited (ulimit -v): a smaller map, which grows as far as it can.
            if size <= 64 * SMALLEST_MAP_BYTES or not has_no_addresses(exc):
                raise translated(exc, "open", files) from exc
            size //= 2


def _opened_with(files: DatabaseFiles, size: int, *, readonly: bool, sync: bool) -> Lmdb:
    options: dict[str, Any] = {
        "map_size": size,
        "subdir": not files.single,
        "readonly": readonly,
        "sync": sync,
        "mode": 0o775,
        "create": False,
        "max_readers": MAX_READERS,
        "max_dbs": MAX_TABLES,
        "max_spare_txns": 0,  # a spare one keeps a slot, which a forked child would end
    }
    try:
        return lmdb.open(os.fspath(files.path), **options)
    except (lmdb.ReadonlyError, lmdb.LockError, PermissionError, lmdb.Error) as exc:
        if not (readonly and may_not_lock(exc, files)):
            raise
    # Data that cannot be written by us, for instance a published read-only mount: nobody changes it.
    logger.info("%s: no right to write the lock file, read without a lock", files.path)
    return lmdb.open(os.fspath(files.path), lock=False, **options)
