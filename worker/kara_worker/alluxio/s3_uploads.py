"""Multipart uploads: parts wait in files of this worker and become one file of the store at the end.

A store's own multipart upload would keep them from a detour over this disk, but stores that have none
take parts in no other way, and parts arrive in any order.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path

from kara_cache.ufs.base import FileInfo, UnderStoreWriter
from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.data_port.upload import upload

MAX_PARTS = 10_000  # S3's own limit
_MAX_UPLOADS = 1000
_MAX_AGE_S = 24 * 3600.0
_LEAST_FREE = 0.05  # of the disk: the pages of the cache live there too
_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    path: Path
    size: int
    etag: str  # MD5 in hex, as S3 gives it
    uploaded: float  # seconds since the epoch


@dataclass(slots=True)
class Upload:
    id: str
    path: str  # kara path of the file to be
    directory: Path
    began: float  # seconds since the epoch
    parts: dict[int, Part] = field(default_factory=dict)


class S3Uploads:
    """Event loop only, but for what says so. Uploads do not outlive the worker."""

    def __init__(self, root: Path, executor: Executor, *, clock: Callable[[], float] = time.time) -> None:
        """`root` is ours alone; what an earlier process left there is removed."""
        self._root = root
        self._executor = executor
        self._clock = clock
        self._uploads: dict[str, Upload] = {}
        shutil.rmtree(root, ignore_errors=True)

    def begin(self, path: str) -> Upload:
        """Raises S3Error where there are too many."""
        self._expire()
        if len(self._uploads) >= _MAX_UPLOADS:
            raise S3Error("SlowDown", f"{_MAX_UPLOADS} uploads are under way on this worker")
        identity = secrets.token_hex(16)
        directory = self._root / identity
        directory.mkdir(mode=0o700, parents=True)
        upload = self._uploads[identity] = Upload(identity, path, directory, self._clock())
        return upload

    def find(self, identity: str, path: str) -> Upload:
        """Raises S3Error for one that is not there, or of another file."""
        found = self._uploads.get(identity)
        if found is None or found.path != path:
            raise S3Error("NoSuchUpload", "no such upload on this worker: parts go to where it was begun")
        return found

    def below(self, prefix: str) -> list[Upload]:
        """Those whose path begins with `prefix`, in the order of their paths."""
        return sorted((u for u in self._uploads.values() if u.path.startswith(prefix)), key=lambda u: u.path)

    async def add(self, found: Upload, number: int, content: AsyncIterator[bytes]) -> Part:
        """Replaces a part of the same number. Raises S3Error, or what `content` does, and keeps nothing."""
        if not 1 <= number <= MAX_PARTS:
            raise S3Error("InvalidArgument", f"part number {number}: want 1 .. {MAX_PARTS}")
        usage = shutil.disk_usage(found.directory)
        if usage.free < usage.total * _LEAST_FREE:
            raise S3Error("SlowDown", "the disk of this worker is nearly full")
        writer = _PartWriter(found.directory / f"{number}.{secrets.token_hex(4)}")
        info = await upload(content, writer, self._executor)
        old = found.parts.get(number)
        part = Part(number, writer.path, info.size, info.version, self._clock())
        found.parts[number] = part
        if old is not None:
            old.path.unlink(missing_ok=True)
        return part

    def chosen(self, found: Upload, wanted: list[tuple[int, str]]) -> list[Part]:
        """The parts that the client names. Raises S3Error for one that is not there, or is another."""
        parts = []
        for number, tag in wanted:
            part = found.parts.get(number)
            if part is None or (tag and tag != part.etag):
                raise S3Error("InvalidPart", f"part {number} was not uploaded, or is another one")
            parts.append(part)
        return parts

    def end(self, found: Upload) -> None:
        """Forgets it and its parts. Idempotent."""
        self._uploads.pop(found.id, None)
        self._executor.submit(shutil.rmtree, found.directory, ignore_errors=True)

    def close(self) -> None:
        self._uploads.clear()
        shutil.rmtree(self._root, ignore_errors=True)

    def _expire(self) -> None:
        for old in [u for u in self._uploads.values() if self._clock() - u.began > _MAX_AGE_S]:
            self.end(old)


def join(parts: list[Part], writer: UnderStoreWriter) -> FileInfo:
    """One file of all parts. Blocking; aborts the writer where it fails."""
    with writer:
        for part in parts:
            with part.path.open("rb") as source:
                while data := source.read(_COPY_BYTES):
                    writer.write(data)
        return writer.commit()


class _PartWriter:
    """An `UnderStoreWriter` into a file of ours, with the MD5 that makes a part's ETag."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._md5 = md5(usedforsecurity=False)
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._md5.update(data)
        self._size += len(data)
        return self._file.write(data)

    def commit(self) -> FileInfo:
        self._file.close()
        return FileInfo(os.fspath(self.path), self._size, self._md5.hexdigest())

    def abort(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
