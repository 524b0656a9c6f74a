"""Files written in pieces to an object store, visible as a whole at commit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

from kara_cache.errors import KaraError, StaleVersion
from kara_cache.ufs.base import FileInfo
from kara_cache.ufs.object_api import ObjectApi, PartFacts
from kara_cache.ufs.object_read import RangeRead
from kara_cache.ufs.object_retries import Retries

PART_BYTES = 8 << 20  # at least 5 MiB for S3; below this the round trips show
PARALLEL_PARTS = 4
_PARTS_PER_SIZE = 1000  # then parts double: the 10 000 that S3 and OSS allow hold 7.8 TiB

logger = logging.getLogger(__name__)


def part_bytes(number: int) -> int:
    """The size of part `number`, 1 the first: 8 MiB for the first 8 GB, twice that for the next 16, ..."""
    return PART_BYTES << ((number - 1) // _PARTS_PER_SIZE)


@dataclass(frozen=True, slots=True)
class EarlierUpload:
    """What an earlier writer has sent; id "" where there is none to go on with."""

    id: str
    parts: Mapping[int, PartFacts]


class ObjectWriter:
    """Collects parts and uploads up to four at a time; what fits into one part is a single PUT.

    At most five parts are in memory. `finish` turns size and ETag into the FileInfo of `commit`.

    With `earlier` it goes on with an upload and is a `ResumableWriter`: a part is not sent where the
    store has one of that number, size and MD5, and nothing is given up but by `abort`.
    """

    def __init__(
        self,
        api: ObjectApi,
        key: str,
        retries: Retries,
        finish: Callable[[int, str], FileInfo],
        *,
        earlier: EarlierUpload | None = None,
    ) -> None:
        self._api = api
        self._key = key
        self._retries = retries
        self._finish = finish
        self._part = bytearray()
        self._size = 0
        self._earlier = earlier
        self._upload = earlier.id if earlier is not None else ""
        self._sent: list[Future[str]] = []
        self._pending: set[Future[str]] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._committed: FileInfo | None = None
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._check_open()
        with memoryview(data) as whole, whole.cast("B") as view:
            taken = 0
            while taken < len(view):
                full = part_bytes(len(self._sent) + 1)
                with view[taken : taken + full - len(self._part)] as piece:
                    self._part += piece
                    taken += len(piece)
                if len(self._part) == full:
                    self._send_part()
        self._size += taken
        return taken

    def commit(self) -> FileInfo:
        if self._committed is None:
            self._check_open()
            try:
                etag = self._put_or_complete()
            except BaseException:
                self._give_up()
                raise
            self._close()
            self._committed = self._finish(self._size, etag)
        return self._committed

    def abort(self) -> None:
        if self._closed:
            return
        self._close()  # first: a part that arrived after the abort would stay, and be paid for
        if self._upload:
            abort_upload(self._api, self._key, self._upload, self._retries)

    def suspend(self) -> None:
        """Parts that are on their way arrive; those that wait for their turn do not leave any more."""
        if not self._closed:
            self._close()

    def _give_up(self) -> None:
        if self._earlier is None:
            self.abort()
        else:
            self.suspend()

    def __enter__(self) -> ObjectWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._give_up()
        elif not self._closed:
            self.commit()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self._api.url}/{self._key}: the writer is closed")

    def _send_part(self) -> None:
        """Takes the collected part away; waits while four are on their way, and fails when one did."""
        if self._pool is None:
            self._upload = self._upload or self._retries.run(lambda: self._api.begin_upload(self._key))
            self._pool = ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="kara-upload")
        if len(self._pending) >= PARALLEL_PARTS:
            # Without a timeout of its own: each part ends within the time of its retry rule.
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for part in done:
                part.result()
        data, self._part = self._part, bytearray()
        part = self._pool.submit(self._put_part, len(self._sent) + 1, data)
        self._sent.append(part)
        self._pending.add(part)

    def _put_part(self, number: int, data: bytearray) -> str:
        there = self._earlier.parts.get(number) if self._earlier is not None else None
        if there is not None and is_part(there, data):
            return there.etag
        return self._retries.run(lambda: self._api.put_part(self._key, self._upload, number, data))

    def _put_or_complete(self) -> str:
        if not self._sent:
            return self._retries.run(lambda: self._api.put(self._key, self._part))
        if self._part:
            self._send_part()
        etags = [part.result() for part in self._sent]
        return self._retries.run(lambda: self._api.complete_upload(self._key, self._upload, etags))

    def _close(self) -> None:
        self._closed = True
        self._part = bytearray()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def is_part(there: PartFacts, data: bytes | bytearray) -> bool:
    """Whether a part that the store has is `data`; never so where its ETags are not MD5."""
    if there.size != len(data):
        return False
    return there.etag.lower() == hashlib.md5(data, usedforsecurity=False).hexdigest()


def abort_upload(api: ObjectApi, key: str, upload: str, retries: Retries) -> bool:
    """Whether it is given up; a warning says where parts stay, and are paid for."""
    try:
        retries.run(lambda: api.abort_upload(key, upload))
    except (OSError, KaraError) as error:
        logger.warning("%s/%s: parts of upload %s are left over: %s", api.url, key, upload, error)
        return False
    return True


class AppendWriter:
    """Keeps everything in memory and appends it in one request: only so it is visible all at once.

    Raises StaleVersion at commit when somebody else appended since.
    """

    def __init__(
        self, api: ObjectApi, key: str, retries: Retries, finish: Callable[[int, str], FileInfo]
    ) -> None:
        self._api = api
        self._key = key
        self._retries = retries
        self._finish = finish
        self._position = retries.run(lambda: api.append_position(key))
        self._data = bytearray()
        self._committed: FileInfo | None = None
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> int:
        self._check_open()
        before = len(self._data)
        self._data += data
        return len(self._data) - before

    def commit(self) -> FileInfo:
        if self._committed is None:
            self._check_open()
            self._closed = True
            etag = self._append()
            self._committed = self._finish(self._position + len(self._data), etag)
            self._data = bytearray()
        return self._committed

    def abort(self) -> None:
        self._closed = True

    def __enter__(self) -> AppendWriter:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort()
        elif not self._closed:
            self.commit()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self._api.url}/{self._key}: the writer is closed")

    def _append(self) -> str:
        repeated = False

        def attempt() -> str:
            nonlocal repeated
            try:
                return self._api.append(self._key, self._position, self._data)
            except StaleVersion:
                # The answer to the attempt before may have been lost on its way, not the bytes.
                if not (repeated and self._has_landed()):
                    raise
                return ""
            finally:
                repeated = True

        return self._retries.run(attempt)

    def _has_landed(self) -> bool:
        if self._api.head(self._key).size != self._position + len(self._data):
            return False
        landed = bytearray(len(self._data))
        read = RangeRead(self._api, self._key, self._position, memoryview(landed), None, None)
        return self._retries.run_timed(read.go_on) == len(landed) and landed == self._data
