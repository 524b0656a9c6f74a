"""What the test OSS server keeps: buckets of objects, in memory or in a directory, and open uploads."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import mmap
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

MIN_PART_BYTES = 100 << 10  # of all parts but the last (EntityTooSmall)


@dataclass(frozen=True, slots=True)
class StoredObject:
    data: memoryview
    etag: str  # upper-case MD5 as OSS writes it; of the parts' digests plus "-<parts>" after an upload
    modified_s: int
    kind: str  # Normal, Multipart, Appendable
    crc64: int | None
    headers: dict[str, str] = field(default_factory=dict)  # Content-Type and x-oss-meta-*


@dataclass(slots=True)
class Upload:
    bucket: str
    key: str
    headers: dict[str, str]
    began_s: int
    parts: dict[int, StoredObject] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListedPage:
    objects: list[tuple[str, StoredObject]]
    prefixes: list[str]
    next_marker: str | None  # the last name given; None at the end


class OssRefused(Exception):
    """An answer with an error code of OSS."""

    def __init__(
        self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message or code)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Bucket:
    """Objects by key. Guarded by the lock of the `ObjectShelf` it stands on."""

    def __init__(self, *, public_read: bool = False, directory: Path | None = None) -> None:
        self.public_read = public_read
        self._objects: dict[str, StoredObject] = {}
        self._sorted: list[str] | None = None
        self._directory = directory
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            for record in directory.glob("*.json"):
                key, stored = _load(record)
                self._objects[key] = stored

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: str) -> StoredObject | None:
        return self._objects.get(key)

    def put(self, key: str, stored: StoredObject) -> StoredObject:
        if self._directory is not None:
            stored = _save(self._directory, key, stored)
        if key not in self._objects:
            self._sorted = None
        self._objects[key] = stored
        return stored

    def remove(self, key: str) -> None:
        if self._objects.pop(key, None) is not None:
            self._sorted = None
            if self._directory is not None:
                for suffix in (".json", ".blob"):
                    _file(self._directory, key, suffix).unlink(missing_ok=True)

    def page(self, prefix: str, delimiter: str, after: str, limit: int) -> ListedPage:
        """At most `limit` keys and rolled-up prefixes behind `after`, in the order of their UTF-8 bytes."""
        if self._sorted is None:
            self._sorted = sorted(self._objects)  # code points and UTF-8 bytes sort alike
        keys, objects, prefixes = self._sorted, list[tuple[str, StoredObject]](), list[str]()
        at = max(bisect_left(keys, prefix), bisect_right(keys, after))
        last: str | None = None
        while at < len(keys) and keys[at].startswith(prefix):
            cut = keys[at].find(delimiter, len(prefix)) if delimiter else -1
            name = keys[at] if cut < 0 else keys[at][: cut + len(delimiter)]
            if cut >= 0 and name <= after:  # rolled up on an earlier page
                at = bisect_right(keys, name + "\U0010ffff")
                continue
            if len(objects) + len(prefixes) == limit:
                return ListedPage(objects, prefixes, last)
            last = name
            if cut < 0:
                objects.append((name, self._objects[name]))
                at += 1
            else:
                prefixes.append(name)
                at = bisect_right(keys, name + "\U0010ffff")
        return ListedPage(objects, prefixes, None)


class ObjectShelf:
    """All buckets and open uploads of a server. Thread-safe.

    With a `directory` the objects are files in it, mapped into memory when served, and a new shelf
    on the same directory has them again.
    """

    def __init__(self, directory: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()  # guards _buckets and their contents, _uploads
        self._buckets: dict[str, Bucket] = {}
        self._uploads: dict[str, Upload] = {}
        if directory is not None and directory.exists():
            for path in sorted(directory.iterdir()):
                self.create_bucket(path.name)

    def create_bucket(self, name: str, *, public_read: bool = False) -> None:
        with self._lock:
            known = self._buckets.get(name)
            if known is not None:
                known.public_read = public_read
                return
            directory = self._directory / name if self._directory is not None else None
            self._buckets[name] = Bucket(public_read=public_read, directory=directory)

    def delete_bucket(self, name: str) -> None:
        with self._lock:
            if len(self._bucket(name)):
                raise OssRefused(409, "BucketNotEmpty")
            del self._buckets[name]
            if self._directory is not None:
                (self._directory / name).rmdir()

    def bucket_names(self) -> list[str]:
        with self._lock:
            return sorted(self._buckets)

    def is_public(self, name: str) -> bool:
        with self._lock:
            return name in self._buckets and self._buckets[name].public_read

    def get(self, bucket: str, key: str) -> StoredObject:
        with self._lock:
            stored = self._bucket(bucket).get(key)
        if stored is None:
            raise OssRefused(404, "NoSuchKey", "The specified key does not exist.")
        return stored

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes | bytearray | memoryview,
        *,
        kind: str = "Normal",
        headers: dict[str, str] | None = None,
    ) -> StoredObject:
        """Replaces the object as a whole. A buffer handed over must not change afterwards."""
        stored = self._stored(memoryview(data), kind, headers or {})
        with self._lock:
            return self._bucket(bucket).put(key, stored)

    def append(
        self, bucket: str, key: str, position: int, data: bytes | bytearray, headers: dict[str, str]
    ) -> StoredObject:
        with self._lock:
            known = self._bucket(bucket).get(key)
            length = len(known.data) if known is not None else 0
            if known is not None and known.kind != "Appendable":
                raise OssRefused(409, "ObjectNotAppendable", "The object is not appendable")
            if position != length:
                text = f"position {position} is not the length {length}"
                raise OssRefused(
                    409, "PositionNotEqualToLength", text, {"x-oss-next-append-position": str(length)}
                )
            whole = bytes(known.data) + data if known is not None else data
            headers = known.headers if known is not None else headers
            return self._bucket(bucket).put(key, self._stored(memoryview(whole), "Appendable", headers))

    def delete(self, bucket: str, key: str) -> None:
        with self._lock:
            self._bucket(bucket).remove(key)

    def page(self, bucket: str, prefix: str, delimiter: str, after: str, limit: int) -> ListedPage:
        with self._lock:
            return self._bucket(bucket).page(prefix, delimiter, after, limit)

    def begin_upload(self, bucket: str, key: str, headers: dict[str, str]) -> str:
        with self._lock:
            self._bucket(bucket)
            upload_id = uuid4().hex.upper()
            self._uploads[upload_id] = Upload(bucket, key, headers, int(self._clock()))
            return upload_id

    def upload(self, upload_id: str, key: str) -> Upload:
        with self._lock:
            known = self._uploads.get(upload_id)
        if known is None or known.key != key:
            raise OssRefused(404, "NoSuchUpload", "The specified upload does not exist.")
        return known

    def uploads(self, bucket: str) -> dict[str, Upload]:
        """Those neither completed nor aborted."""
        with self._lock:
            return {name: upload for name, upload in self._uploads.items() if upload.bucket == bucket}

    def put_part(self, upload_id: str, key: str, number: int, data: bytes | bytearray) -> StoredObject:
        if not 1 <= number <= 10000:
            raise OssRefused(400, "InvalidArgument", f"part number {number} is not in 1..10000")
        part = self._stored(memoryview(data), "Part", {})
        self.upload(upload_id, key).parts[number] = part
        return part

    def complete_upload(self, upload_id: str, key: str, wanted: list[tuple[int, str]]) -> StoredObject:
        upload = self.upload(upload_id, key)
        numbers = [number for number, _ in wanted]
        if numbers != sorted(set(numbers)) or not numbers:
            raise OssRefused(400, "InvalidPartOrder", f"parts must ascend: {numbers}")
        parts = [upload.parts.get(number) for number in numbers]
        if any(part is None or part.etag != etag for part, (_, etag) in zip(parts, wanted, strict=True)):
            raise OssRefused(400, "InvalidPart", "a part is missing or its ETag differs")
        present = [part for part in parts if part is not None]
        if any(len(part.data) < MIN_PART_BYTES for part in present[:-1]):
            raise OssRefused(400, "EntityTooSmall", f"a part is smaller than {MIN_PART_BYTES} bytes")
        stored = self._stored(memoryview(b"".join(p.data for p in present)), "Multipart", upload.headers)
        digests = hashlib.md5(b"".join(bytes.fromhex(p.etag) for p in present), usedforsecurity=False)
        stored = replace(stored, etag=f"{digests.hexdigest().upper()}-{len(present)}")
        with self._lock:
            self._uploads.pop(upload_id, None)
            return self._bucket(upload.bucket).put(key, stored)

    def abort_upload(self, upload_id: str, key: str) -> None:
        self.upload(upload_id, key)
        with self._lock:
            self._uploads.pop(upload_id, None)

    def _bucket(self, name: str) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            raise OssRefused(404, "NoSuchBucket", "The specified bucket does not exist.")
        return bucket

    def _stored(self, data: memoryview, kind: str, headers: dict[str, str]) -> StoredObject:
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
        return StoredObject(data, etag, int(self._clock()), kind, crc64(data), headers)


def crc64(data: memoryview) -> int | None:
    """CRC-64/XZ as in x-oss-hash-crc64ecma; None without crcmod's C code: pure Python takes seconds a MiB."""
    compute = _crc64_function()
    return compute(data) if compute is not None else None


@functools.cache
def _crc64_function() -> Callable[[memoryview], int] | None:
    try:
        importlib.import_module("crcmod._crcfunext")  # only there if a compiler was at installation
        crcmod = importlib.import_module("crcmod")
    except ImportError:
        return None
    made: Callable[[memoryview], int] = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, 0, True, 0xFFFFFFFFFFFFFFFF)
    return made


def _file(directory: Path, key: str, suffix: str) -> Path:
    """A key may be longer than a file name, and hold anything: files are named by its hash."""
    return directory / (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() + suffix)


def _save(directory: Path, key: str, stored: StoredObject) -> StoredObject:
    blob, record = _file(directory, key, ".blob"), _file(directory, key, ".json")
    facts = {name: getattr(stored, name) for name in ("etag", "modified_s", "kind", "crc64", "headers")}
    for path, content in ((blob, stored.data), (record, json.dumps({"key": key, **facts}).encode())):
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.write_bytes(content)
        fresh.rename(path)  # a mapping of the old file stays what it was
    return replace(stored, data=_mapped(blob))


def _load(record: Path) -> tuple[str, StoredObject]:
    fields = json.loads(record.read_bytes())
    fields["data"] = _mapped(record.with_suffix(".blob"))
    return fields.pop("key"), StoredObject(**fields)


def _mapped(path: Path) -> memoryview:
    if path.stat().st_size == 0:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
