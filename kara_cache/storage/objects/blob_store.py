"""The blobs of one key: `obj/<namespace>/<key>/data/<md5>_<sha1>`."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from kara_cache.errors import FormatError
from kara_cache.storage.location import Location
from kara_cache.storage.objects.blob_digest import BlobDigest, blob_of
from kara_cache.storage.objects.object_tree import Blob
from kara_cache.storage.objects.partial_blob import PART_BYTES
from kara_cache.storage.objects.transfer_pool import TransferPool
from kara_cache.ufs.base import UnderStoreWriter
from kara_cache.ufs.resumable import ResumableStore, Unfinished

_LIST_FROM = 64  # blobs; for fewer it is cheaper to ask for each than to list what earlier versions left


class BlobStore:
    """Thread-safe. Blobs are never changed in place and never deleted: other versions may have them."""

    def __init__(self, location: Location, namespace: str, key: str) -> None:
        self._store = location.store
        self._directory = location.path("obj", namespace, key, "data")

    def path(self, blob: Blob) -> str:
        return f"{self._directory}/{blob.name}"

    def size(self, blob: Blob) -> int | None:
        """Of the blob that the store has under this name, None where it has none."""
        try:
            return self._store.info(self.path(blob)).size
        except FileNotFoundError:
            return None

    def sizes(self, blobs: Collection[Blob]) -> dict[str, int] | None:
        """Of the blobs that are there, by name; None where it is better to ask for each."""
        if len(blobs) < _LIST_FROM:
            return None
        names, found = {blob.name for blob in blobs}, {}
        try:
            for info in self._store.list(self._directory):
                name = info.path.rpartition("/")[2]
                if name in names:
                    found[name] = info.size
        except FileNotFoundError:
            pass
        return found

    def read_into(self, blob: Blob, start: int, buffer: memoryview) -> None:
        """Fills the buffer. Raises FormatError where the blob is missing or shorter than its version says."""
        try:
            count = self._store.read_into(self.path(blob), start, buffer)
        except FileNotFoundError as exc:
            raise FormatError(f"{self._full(blob)}: the blob is missing in the store") from exc
        if count != len(buffer):
            raise FormatError(f"{self._full(blob)}: the blob has {start + count} bytes, expected {blob.size}")

    def read(self, blob: Blob, buffer: memoryview) -> None:
        """A small blob as a whole, checked. Raises FormatError for wrong bytes."""
        self.read_into(blob, 0, buffer)
        self.check(blob, blob_of(buffer))

    def check(self, blob: Blob, found: Blob) -> None:
        """Raises FormatError where the bytes that came are not what the name says."""
        if found != blob:
            raise FormatError(
                f"{self._full(blob)}: the blob is corrupt: {found.size} bytes with the digests {found.name}"
            )

    def spans(self, blob: Blob) -> Iterator[tuple[int, int]]:
        for start in range(0, blob.size, PART_BYTES):
            yield start, min(start + PART_BYTES, blob.size)

    def problem(self, blob: Blob, pool: TransferPool) -> str:
        """What is wrong with the blob in the store, by reading all of it; "" for nothing."""
        found = self.size(blob)
        if found is None:
            return "missing"
        if found != blob.size:
            return f"{found} bytes, expected {blob.size}"
        digest, buffer = BlobDigest(), memoryview(bytearray(min(blob.size, PART_BYTES)))
        for start, stop in self.spans(blob):
            pool.check_running()
            self.read_into(blob, start, buffer[: stop - start])
            digest.update(buffer[: stop - start])
        return "" if digest.blob() == blob else f"its bytes have the digests {digest.blob().name}"

    def write(self, blob: Blob, data: memoryview) -> None:
        self._store.write(self.path(blob), data)

    def unfinished(self) -> Unfinished | None:
        """What interrupted saves left of blobs; None where stores do not keep parts (behind a cache)."""
        store = self._store
        return store.unfinished(self._directory) if isinstance(store, ResumableStore) else None

    def open_writer(self, blob: Blob) -> UnderStoreWriter:
        return self._store.open_writer(self.path(blob))

    def _full(self, blob: Blob) -> str:
        return f"{self._store.url}/{self.path(blob)}"
