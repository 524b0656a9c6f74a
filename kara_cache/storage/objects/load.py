"""A version of a directory from the store to a local directory."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from functools import partial

from kara_cache.storage.objects.blob_digest import digest_of
from kara_cache.storage.objects.blob_store import BlobStore
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree
from kara_cache.storage.objects.partial_blob import PART_BYTES, PartialBlob, write_all
from kara_cache.storage.objects.progress import Bar
from kara_cache.storage.objects.target_tree import TargetTree, stamp
from kara_cache.storage.objects.transfer_pool import Task, TransferPool
from kara_cache.storage.objects.work_directory import WorkDirectory

_Wanted = dict[Blob, list[FileEntry]]


def load_tree(
    blobs: BlobStore, tree: ObjectTree, target: TargetTree, pool: TransferPool, *, bar: Bar, delete: bool
) -> None:
    """Makes the files of `target` those of `tree`; each is replaced as a whole, when its digests are right.

    Files that are right already are not read from the store. What an earlier load did not finish is
    gone on with. When this one fails, what it has got so far is kept in the target's hidden work
    directory, and what was in the target and not yet replaced is as it was.

    Raises:
        PermissionError, NotADirectoryError, IsADirectoryError: something is in the way; nothing was written.
        BlockingIOError: another load is writing to this directory.
        FormatError: a blob is missing or corrupt; its file is as it was.
        OSError (ENOSPC): the disk is full, or would be.
    """
    target.check(tree, clear=delete)
    target.make_directories(tree, clear=delete)
    with WorkDirectory(target.path) as work:
        load = _Load(blobs, target, work, pool, bar)
        try:
            load.run(tree)
        finally:
            load.close()
        if delete:
            target.delete_unrelated(tree)
        work.remove()


class _Load:
    def __init__(
        self, blobs: BlobStore, target: TargetTree, work: WorkDirectory, pool: TransferPool, bar: Bar
    ) -> None:
        self._blobs = blobs
        self._target = target
        self._work = work
        self._pool = pool
        self._bar = bar
        self._lock = threading.Lock()  # guards _wanted and _partials
        self._wanted: _Wanted = {}
        self._partials: list[PartialBlob] = []
        self._buffers = threading.local()  # one of PART_BYTES for each thread, instead of one for each part

    def run(self, tree: ObjectTree) -> None:
        self._pool.run((PART_BYTES, partial(self._keep_or_want, file)) for file in tree.files)
        # The largest first, so that not one thread is left with a long one at the end.
        wanted = dict(sorted(self._wanted.items(), key=lambda item: (-item[0].size, item[0].name)))
        self._check_space(wanted)
        self._pool.run(self._tasks(wanted))

    def close(self) -> None:
        for blob in self._partials:
            blob.close()

    def _keep_or_want(self, file: FileEntry) -> None:
        descriptor = self._target.open_existing(file)
        if descriptor is not None:
            try:
                if digest_of(descriptor, self._pool) == file.blob:
                    stamp(descriptor, file)
                    self._bar.update(file.blob.size)
                    return
            finally:
                os.close(descriptor)
        with self._lock:
            self._wanted.setdefault(file.blob, []).append(file)

    def _check_space(self, wanted: _Wanted) -> None:
        files = [file for group in wanted.values() for file in group]
        needed = sum(file.blob.size for file in files) - self._work.allocated_bytes()
        needed -= sum(self._target.allocated_bytes(file) for file in files)
        disk = os.statvfs(self._target.path)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and needed > free:
            what = f"the load needs {needed} bytes more, {free} are free"
            raise OSError(errno.ENOSPC, what, self._target.path)

    def _tasks(self, wanted: _Wanted) -> Iterator[Task]:
        for blob, files in wanted.items():
            if blob.size <= PART_BYTES:
                yield blob.size, partial(self._fetch_small, blob, files)
                continue
            arriving = PartialBlob(self._work, blob)
            self._partials.append(arriving)
            missing = arriving.missing()
            there = blob.size - sum(stop - start for start, stop in map(arriving.span, missing))
            self._bar.update(there)
            if not missing:
                yield PART_BYTES, partial(self._finish, arriving, files)
            for index in missing:
                yield PART_BYTES, partial(self._fetch_part, arriving, index, files)

    def _fetch_small(self, blob: Blob, files: list[FileEntry]) -> None:
        buffer = self._buffer(blob.size)
        self._blobs.read(blob, buffer)
        self._pool.check_running()
        for file in files:
            name = f"{blob.name}.copy-0"
            descriptor = self._work.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                write_all(descriptor, buffer, 0)
                stamp(descriptor, file)
            except OSError as exc:
                raise self._named(exc, file) from exc
            finally:
                os.close(descriptor)
            self._target.place(self._work, name, file)
            self._bar.update(blob.size)

    def _fetch_part(self, arriving: PartialBlob, index: int, files: list[FileEntry]) -> None:
        if self._copy_part(arriving, index, files[0]):
            self._finish(arriving, files)

    def _copy_part(self, arriving: PartialBlob, index: int, file: FileEntry) -> bool:
        self._pool.check_running()
        start, stop = arriving.span(index)
        buffer = self._buffer(stop - start)
        self._blobs.read_into(arriving.blob, start, buffer)
        self._pool.check_running()
        try:
            complete = arriving.put(index, buffer)
        except OSError as exc:
            raise self._named(exc, file) from exc
        self._bar.update(stop - start)
        return complete

    def _finish(self, arriving: PartialBlob, files: list[FileEntry]) -> None:
        """All parts are there: the file is checked and put in its place, or what is wrong is thrown away."""
        blob = arriving.blob
        found = arriving.digest(self._pool)
        if found != blob and arriving.resumed:  # parts of another load, or of a machine that lost power
            arriving.start_over()
            for index in arriving.missing():
                self._copy_part(arriving, index, files[0])
            found = arriving.digest(self._pool)
        if found != blob:
            arriving.discard()
            self._blobs.check(blob, found)
        for number, file in enumerate(files[1:]):
            self._copy(arriving, f"{blob.name}.copy-{number}", file)
        stamp(arriving.descriptor, files[0])
        self._target.place(self._work, arriving.name, files[0])
        arriving.finish()

    def _copy(self, arriving: PartialBlob, name: str, file: FileEntry) -> None:
        descriptor = self._work.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            position = 0
            while count := os.sendfile(descriptor, arriving.descriptor, position, PART_BYTES):
                self._pool.check_running()
                position += count
                self._bar.update(count)
            stamp(descriptor, file)
        except OSError as exc:
            raise self._named(exc, file) from exc
        finally:
            os.close(descriptor)
        self._target.place(self._work, name, file)

    def _buffer(self, size: int) -> memoryview:
        memory: memoryview | None = getattr(self._buffers, "memory", None)
        if memory is None:
            memory = self._buffers.memory = memoryview(bytearray(PART_BYTES))
        return memory[:size]

    def _named(self, error: OSError, file: FileEntry) -> OSError:
        """The same with the file's name, which errors of descriptors do not have."""
        if error.filename is not None or error.errno is None:
            return error
        return OSError(error.errno, os.strerror(error.errno), os.path.join(self._target.path, *file.path))
