"""The keys of a published row data set: a file beside its rows that leads from a key to a row.

It is read by ranges, so that a lookup in a billion keys costs two small reads, also through the cache.
Older readers of the data set know only `index/` and `data/` and do not look at it.

The file, all numbers little-endian, all checksums xxh3_64:

    header   | "KARAKEYS" 8 | version 2 = 1 | zero 6 | keys 8 | buckets 8 | key bytes 8 | checksum 8 |
    buckets  | entries 2 | zero 6 | 170 x (hash 8 | row 8 | offset 8) | checksum 8 |   4096 bytes each
    keys     | length 2 | UTF-8 | ...                             in the order of the rows
    sums     | checksum 8 | ...                                  of each 64 KiB of keys

`hash` is xxh3_64 of the key; its bucket is `hash * buckets >> 64`, and entries are sorted by it. `offset`
leads to the key among the keys, which is compared, so that equal hashes do no harm. Entries that are not
used are zero. Buckets are made for 100 entries on average: 170 is seven standard deviations away, and a
builder that meets a fuller one takes more buckets.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from kara_cache.checksum import checksum
from kara_cache.errors import FormatError, UnderStoreError
from kara_cache.ufs.base import UnderStore, UnderStoreWriter

PLACE = ("keys", "rows.keys")
"""Of the file, in the directory of a version."""
MAX_KEY_BYTES = 0xFFFF
BUCKET_BYTES = 4096
BUCKET_ENTRIES = 170
_MEAN_ENTRIES = 100
_BLOCK_BYTES = 64 << 10
_MAGIC, _VERSION = b"KARAKEYS", 1
_HEADER = struct.Struct("<8sH6xQQQ")
_SUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _SUM.size
_BUCKET_HEAD = struct.Struct("<H6x")
_ENTRY = struct.Struct("<QQQ")
_LENGTH = struct.Struct("<H")
_CACHED_BUCKETS = 256


class RowKeys:
    """Keys of the first `len(self)` rows of a data set. Thread-safe; nothing is loaded as a whole.

    Raises, from every method: FormatError for damage, and what the store raises.
    """

    @classmethod
    def open(cls, store: UnderStore, path: str) -> RowKeys | None:
        """None where the data set has no keys."""
        try:
            info = store.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(store, path, info.size, info.version or None)

    def __init__(self, store: UnderStore, path: str, size: int, version: str | None) -> None:
        self._store = store
        self._path = path
        self._size = size
        self._version = version
        header = self._read(0, min(HEADER_BYTES, size))
        if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
            raise FormatError(f"{self._where}: not a file of keys, it begins with {header[:8]!r}")
        self._check("header", header)
        _, number, *sizes = _HEADER.unpack_from(header)
        self._count, self._buckets, self._key_bytes = map(int, sizes)
        if number != _VERSION:
            raise FormatError(f"{self._where}: version {number}; this release reads {_VERSION}")
        self._keys_start = HEADER_BYTES + self._buckets * BUCKET_BYTES
        expected = self._keys_start + self._key_bytes + _SUM.size * _blocks(self._key_bytes)
        if size != expected:
            raise FormatError(f"{self._where}: {size} bytes, its header says {expected}")
        self._cached: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()  # guards _cached

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) is not None

    def find(self, key: str) -> int | None:
        """The row of the key. Two reads of at most 4 KiB, one where the bucket was read before."""
        record = _record(key)
        hashed = checksum(record[_LENGTH.size :])
        for row, offset in self._candidates(hashed):
            start = self._keys_start + offset
            if self._read(start, min(start + len(record), self._size)) == record:
                return row
        return None

    def find_many(self, keys: Sequence[str]) -> list[int | None]:
        """In the order of `keys`."""
        return [self.find(key) for key in keys]

    def keys(self) -> Iterator[str]:
        """In the order of the rows, verified, 64 KiB at a time."""
        rest = b""
        for number in range(_blocks(self._key_bytes)):
            rest += self._block(number)
            at = 0
            while at + _LENGTH.size <= len(rest):
                stop = at + _LENGTH.size + _LENGTH.unpack_from(rest, at)[0]
                if stop > len(rest):
                    break
                yield rest[at + _LENGTH.size : stop].decode()
                at = stop
            rest = rest[at:]

    def verify(self) -> None:
        """Reads all of it. Raises FormatError naming the part that is damaged."""
        for number in range(self._buckets):
            self._read_bucket(number)
        if (count := sum(1 for _ in self.keys())) != self._count:
            raise FormatError(f"{self._where}: {count} keys, its header says {self._count}")

    def _candidates(self, hashed: int) -> Iterator[tuple[int, int]]:
        if not self._count:
            return
        bucket = self._bucket(hashed * self._buckets >> 64)
        used = _BUCKET_HEAD.unpack_from(bucket)[0]
        for at in range(_BUCKET_HEAD.size, _BUCKET_HEAD.size + used * _ENTRY.size, _ENTRY.size):
            found, row, offset = _ENTRY.unpack_from(bucket, at)
            if found == hashed:
                yield row, offset

    def _bucket(self, number: int) -> bytes:
        with self._lock:
            found = self._cached.get(number)
            if found is not None:
                self._cached.move_to_end(number)
                return found
        found = self._read_bucket(number)
        with self._lock:
            self._cached[number] = found
            if len(self._cached) > _CACHED_BUCKETS:
                self._cached.popitem(last=False)
        return found

    def _read_bucket(self, number: int) -> bytes:
        start = HEADER_BYTES + number * BUCKET_BYTES
        return self._check(f"bucket {number}", self._read(start, start + BUCKET_BYTES))

    def _block(self, number: int) -> bytes:
        start = number * _BLOCK_BYTES
        stop = min(start + _BLOCK_BYTES, self._key_bytes)
        found = self._read(self._keys_start + start, self._keys_start + stop)
        sum_at = self._keys_start + self._key_bytes + number * _SUM.size
        self._check(f"keys, block {number}", found + self._read(sum_at, sum_at + _SUM.size))
        return found

    def _check(self, part: str, data: bytes) -> bytes:
        want, got = _SUM.unpack_from(data, len(data) - _SUM.size)[0], checksum(data[: -_SUM.size])
        if got != want:
            raise FormatError(f"{self._where}: {part}: checksum {got:#x}, want {want:#x}")
        return data

    def _read(self, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        got = self._store.read_into(self._path, start, memoryview(buffer), version=self._version)
        if got != len(buffer):
            raise UnderStoreError(f"{self._where}: {got} of {len(buffer)} bytes at {start}")
        return bytes(buffer)

    @property
    def _where(self) -> str:
        return f"{self._store.url.rstrip('/')}/{self._path}"


def write_row_keys(store: UnderStore, path: str, keys: Iterable[str]) -> int:
    """Writes the file for keys in the order of their rows, and returns how many there are.

    Visible all at once. Takes about 60 bytes of memory for each key, whatever its length.
    Raises ValueError for a key that comes twice, is empty or too long; then nothing was written.
    """
    hashes, offsets = array("Q"), array("Q")
    with tempfile.TemporaryFile() as spool:
        at = 0
        for key in keys:
            record = _record(key)
            hashes.append(checksum(record[_LENGTH.size :]))
            offsets.append(at)
            at += spool.write(record)
        order = sorted(range(len(hashes)), key=hashes.__getitem__)
        _refuse_twins(spool, order, hashes, offsets)
        buckets = _enough_buckets(order, hashes)
        with store.open_writer(path) as out:
            header = _HEADER.pack(_MAGIC, _VERSION, len(hashes), buckets, at)
            out.write(header + _SUM.pack(checksum(header)))
            _write_buckets(out, buckets, order, hashes, offsets)
            _write_keys(out, spool)
            out.commit()
    return len(hashes)


def _write_buckets(
    out: UnderStoreWriter, buckets: int, order: Sequence[int], hashes: array[int], offsets: array[int]
) -> None:
    at = 0
    for number in range(buckets):
        entries = []
        while at < len(order) and hashes[order[at]] * buckets >> 64 == number:
            row = order[at]
            entries.append(_ENTRY.pack(hashes[row], row, offsets[row]))
            at += 1
        body = b"".join((_BUCKET_HEAD.pack(len(entries)), *entries)).ljust(BUCKET_BYTES - _SUM.size, b"\0")
        out.write(body + _SUM.pack(checksum(body)))


def _write_keys(out: UnderStoreWriter, spool: IO[bytes]) -> None:
    spool.seek(0)
    sums = bytearray()
    while block := spool.read(_BLOCK_BYTES):
        out.write(block)
        sums += _SUM.pack(checksum(block))
    out.write(sums)


def _enough_buckets(order: Sequence[int], hashes: array[int]) -> int:
    buckets = -(-len(order) // _MEAN_ENTRIES)
    while True:
        # Sorted, so an overfull bucket shows as two entries that are that far apart and share it.
        full = any(
            hashes[order[i]] * buckets >> 64 == hashes[order[i + BUCKET_ENTRIES]] * buckets >> 64
            for i in range(len(order) - BUCKET_ENTRIES)
        )
        if not full:
            return buckets
        buckets += buckets // 4 + 1


def _refuse_twins(spool: IO[bytes], order: Sequence[int], hashes: array[int], offsets: array[int]) -> None:
    group: set[bytes] = set()
    for i, row in enumerate(order):
        same = i > 0 and hashes[order[i - 1]] == hashes[row]
        if not same:
            group.clear()
        if same or (i + 1 < len(order) and hashes[order[i + 1]] == hashes[row]):
            spool.seek(offsets[row])
            record = spool.read(_LENGTH.unpack(spool.read(_LENGTH.size))[0])
            if record in group:
                raise ValueError(f"key {record.decode()!r} comes twice, the second time at row {row}")
            group.add(record)


def _record(key: str) -> bytes:
    name = key.encode()
    if not 0 < len(name) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8, got {len(name)}: {key[:40]!r}")
    return _LENGTH.pack(len(name)) + name


def _blocks(size: int) -> int:
    return -(-size // _BLOCK_BYTES)
