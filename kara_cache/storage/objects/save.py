"""A local directory to blobs in the store."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import BinaryIO

from kara_cache.storage.objects.blob_digest import CHUNK_BYTES, BlobDigest, blob_of
from kara_cache.storage.objects.blob_store import BlobStore
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree
from kara_cache.storage.objects.partial_blob import PART_BYTES
from kara_cache.storage.objects.progress import Bar
from kara_cache.storage.objects.source_tree import SourceFile, SourceTree
from kara_cache.storage.objects.transfer_pool import Task, TransferPool
from kara_cache.ufs.base import UnderStoreWriter
from kara_cache.ufs.resumable import Unfinished, UploadGone

_WRITER_BYTES = 5 * PART_BYTES  # what a writer of an object store holds: `ufs.object_writer`

_Sources = Mapping[Blob, SourceFile]


def hash_tree(source: SourceTree, pool: TransferPool, *, bar: Bar) -> tuple[ObjectTree, _Sources]:
    """Both digests of every file, and a file for each content. Raises OSError when one changes meanwhile."""
    entries: list[FileEntry] = []
    sources: dict[Blob, SourceFile] = {}
    lock = threading.Lock()  # guards both

    def take(file: SourceFile) -> None:
        blob = _hash(file, pool, bar)
        with lock:
            entries.append(FileEntry(file.path, blob, file.mode, file.mtime_ns))
            sources.setdefault(blob, file)

    pool.run((CHUNK_BYTES, partial(take, file)) for file in source.files)
    files = tuple(sorted(entries, key=lambda entry: entry.path))
    return ObjectTree(files, source.empty_directories), sources


def upload_blobs(blobs: BlobStore, sources: _Sources, pool: TransferPool, *, bar: Bar, verify: bool) -> int:
    """Sends what the store does not have, or has in another size; with `verify` also what it has wrong.

    Of large ones that an interrupted save has begun, only the parts that are missing are sent; what is of
    no use any more is given up at the end. Returns how many blobs were sent. Each is digested again on
    its way, so that a file that changes meanwhile never becomes a blob with a name that is not its own.
    """
    large = [blob for blob in sources if blob.size > PART_BYTES]
    unfinished = blobs.unfinished()
    upload = _Upload(blobs, pool, bar, blobs.sizes(sources), unfinished, verify)
    pool.run(upload.tasks(sources))
    if unfinished is not None:
        unfinished.clear([blobs.path(blob) for blob in large])
    return upload.sent


def _hash(file: SourceFile, pool: TransferPool, bar: Bar) -> Blob:
    digest, buffer = BlobDigest(), memoryview(bytearray(min(CHUNK_BYTES, max(file.size, 1))))
    with open(file.full, "rb", buffering=0) as opened:
        before = os.fstat(opened.fileno())
        while count := opened.readinto(buffer):
            pool.check_running()
            digest.update(buffer[:count])
            bar.update(count)
        after = os.fstat(opened.fileno())
    blob = digest.blob()
    if (before.st_mtime_ns, before.st_size) != (
        after.st_mtime_ns,
        after.st_size,
    ) or blob.size != after.st_size:
        raise _changed(file)
    return blob


def _changed(file: SourceFile) -> OSError:
    return OSError(errno.EBUSY, "the file changed while it was saved", file.full)


class _Upload:
    def __init__(
        self,
        blobs: BlobStore,
        pool: TransferPool,
        bar: Bar,
        sizes: Mapping[str, int] | None,
        unfinished: Unfinished | None,
        verify: bool,
    ) -> None:
        self._blobs = blobs
        self._unfinished = unfinished
        self._pool = pool
        self._bar = bar
        self._sizes = sizes
        self._verify = verify
        self._lock = threading.Lock()  # guards sent
        self.sent = 0

    def tasks(self, sources: _Sources) -> Iterator[Task]:
        """The largest first, so that not one thread is left with a long one at the end."""
        for blob in sorted(sources, key=lambda blob: (-blob.size, blob.name)):
            cost = blob.size if blob.size <= PART_BYTES else _WRITER_BYTES
            yield cost, partial(self._take, blob, sources[blob])

    def _take(self, blob: Blob, file: SourceFile) -> None:
        if self._is_there(blob):
            self._bar.update(blob.size)
            return
        with open(file.full, "rb", buffering=0) as opened:
            if blob.size <= PART_BYTES:
                self._send_small(blob, file, opened)
            else:
                self._send_large(blob, file, opened)
        with self._lock:
            self.sent += 1

    def _is_there(self, blob: Blob) -> bool:
        size = self._blobs.size(blob) if self._sizes is None else self._sizes.get(blob.name)
        if size != blob.size:
            return False
        return not (self._verify and self._blobs.problem(blob, self._pool))

    def _send_small(self, blob: Blob, file: SourceFile, opened: BinaryIO) -> None:
        data = opened.read(blob.size + 1)
        if blob_of(data) != blob:
            raise _changed(file)
        self._blobs.write(blob, memoryview(data))
        self._bar.update(blob.size)

    def _send_large(self, blob: Blob, file: SourceFile, opened: BinaryIO) -> None:
        try:
            self._write(blob, file, opened)
        except UploadGone:
            # A save elsewhere has the same content: it was faster, or it has given this upload up.
            self._bar.update(-opened.tell())
            if self._blobs.size(blob) == blob.size:
                self._bar.update(blob.size)
                return
            opened.seek(0)
            self._write(blob, file, opened)

    def _write(self, blob: Blob, file: SourceFile, opened: BinaryIO) -> None:
        digest, buffer = BlobDigest(), memoryview(bytearray(CHUNK_BYTES))
        with self._open_writer(blob) as writer:
            while count := opened.readinto(buffer):  # type: ignore[attr-defined]  # a raw file has it
                self._pool.check_running()
                digest.update(buffer[:count])
                writer.write(buffer[:count])
                self._bar.update(count)
            if digest.blob() != blob:
                writer.abort()  # or the next save would go on with bytes of another content
                raise _changed(file)
            writer.commit()

    def _open_writer(self, blob: Blob) -> UnderStoreWriter:
        if self._unfinished is None:
            return self._blobs.open_writer(blob)
        return self._unfinished.open_writer(self._blobs.path(blob))
