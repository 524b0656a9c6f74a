"""A large blob on its way: its bytes, and a journal of which parts of them are there.

    <blob>.part     the blob's bytes at their places, holes where none came yet
    <blob>.done     offset  size
                    0       4     "KLP1"
                    4       4     bytes of a part, little-endian
                    8       8     bytes of the blob, little-endian
                    16      n     a byte for each part: 0 missing, 1 there

A part's byte is set after its data was handed to the kernel, so what a killed process left is right. A
machine that lost power may have kept the one and not the other: the digest of the whole decides.
"""

from __future__ import annotations

import os
import struct
import threading

from kara_cache.storage.objects.blob_digest import digest_of
from kara_cache.storage.objects.object_tree import Blob
from kara_cache.storage.objects.transfer_pool import TransferPool
from kara_cache.storage.objects.work_directory import WorkDirectory

PART_BYTES = 8 << 20  # as in uploads: below this the round trips show
_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"KLP1"


class PartialBlob:
    """Parts may come from several threads in any order."""

    def __init__(self, work: WorkDirectory, blob: Blob, *, part_bytes: int = PART_BYTES) -> None:
        self.blob = blob
        self.name = f"{blob.name}.part"
        self._journal_name = f"{blob.name}.done"
        self._work = work
        self._part_bytes = part_bytes
        self._lock = threading.Lock()  # guards _done
        self.descriptor = work.open(self.name, os.O_RDWR | os.O_CREAT)
        self._journal = work.open(self._journal_name, os.O_RDWR | os.O_CREAT)
        self._done = self._read_journal()
        self.resumed = any(self._done)

    def missing(self) -> list[int]:
        with self._lock:
            return [index for index, done in enumerate(self._done) if not done]

    def span(self, index: int) -> tuple[int, int]:
        """Of a part: start and stop in the blob."""
        start = index * self._part_bytes
        return start, min(start + self._part_bytes, self.blob.size)

    def put(self, index: int, data: memoryview) -> bool:
        """Whether this was the last part that was missing."""
        start, _ = self.span(index)
        write_all(self.descriptor, data, start)
        with self._lock:
            self._done[index] = 1
            complete = all(self._done)
        os.pwrite(self._journal, b"\1", _HEADER.size + index)
        return complete

    def digest(self, pool: TransferPool) -> Blob:
        """Of what is in the file."""
        return digest_of(self.descriptor, pool)

    def start_over(self) -> None:
        """Forgets every part."""
        with self._lock:
            self._done = bytearray(len(self._done))
            self.resumed = False
            self._write_journal(self._done)

    def discard(self) -> None:
        self._work.unlink(self._journal_name)
        self._work.unlink(self.name)
        self.close()

    def finish(self) -> None:
        """When the file has been renamed to its place."""
        self._work.unlink(self._journal_name)
        self.close()

    def close(self) -> None:
        """Idempotent; the next load goes on with what is there."""
        for descriptor in (self.descriptor, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._journal = -1

    def _read_journal(self) -> bytearray:
        parts = -(-self.blob.size // self._part_bytes)
        header = _HEADER.pack(_MAGIC, self._part_bytes, self.blob.size)
        found = os.pread(self._journal, len(header) + parts + 1, 0)
        if found[: len(header)] == header and len(found) == len(header) + parts:
            return bytearray(found[len(header) :])
        fresh = bytearray(parts)
        self._write_journal(fresh)
        return fresh

    def _write_journal(self, done: bytearray) -> None:
        os.ftruncate(self._journal, 0)
        os.ftruncate(self.descriptor, self.blob.size)
        os.pwrite(self._journal, _HEADER.pack(_MAGIC, self._part_bytes, self.blob.size) + done, 0)


def write_all(descriptor: int, data: memoryview, position: int) -> None:
    """pwrite writes less than it is given where the disk fills up."""
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count
