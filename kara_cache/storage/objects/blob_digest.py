"""Both digests of a blob in one pass over its bytes."""

from __future__ import annotations

import hashlib
import os

from kara_cache.storage.objects.object_tree import Blob
from kara_cache.storage.objects.transfer_pool import TransferPool

CHUNK_BYTES = 1 << 20  # stays in the CPU's cache while both digests go over it


class BlobDigest:
    """Neither digest resists an attacker who can write to the store; they find accidents."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            for start in range(0, len(view), CHUNK_BYTES):
                with view[start : start + CHUNK_BYTES] as piece:
                    self._md5.update(piece)
                    self._sha1.update(piece)
            self._size += len(view)

    def blob(self) -> Blob:
        """Of everything so far."""
        return Blob(self._md5.hexdigest(), self._sha1.hexdigest(), self._size)


def digest_of(descriptor: int, pool: TransferPool) -> Blob:
    """Of all bytes of an open file."""
    digest, buffer, position = BlobDigest(), memoryview(bytearray(CHUNK_BYTES)), 0
    while count := os.preadv(descriptor, [buffer], position):
        pool.check_running()
        digest.update(buffer[:count])
        position += count
    return digest.blob()


def blob_of(data: bytes | bytearray | memoryview) -> Blob:
    digest = BlobDigest()
    digest.update(data)
    return digest.blob()
