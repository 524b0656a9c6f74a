"""One read of a range, over as many GETs as it takes."""

from __future__ import annotations

from kara_cache.errors import StaleVersion, UnderStoreError
from kara_cache.ufs.base import Progress
from kara_cache.ufs.milestones import Milestones
from kara_cache.ufs.object_api import ObjectApi, ObjectBody
from kara_cache.ufs.retry import Attempts, TryAgain


class RangeRead:
    """Fills a buffer; a GET that breaks is followed by one for the rest, pinned to the same ETag.

    Every answer is checked before its body is read: ETag, start and length of the range.
    """

    def __init__(
        self,
        api: ObjectApi,
        key: str,
        start: int,
        buffer: memoryview,
        version: str | None,
        progress: Progress | None,
    ) -> None:
        self._api = api
        self._key = key
        self._start = start
        self._buffer = buffer
        self._pin = version
        self._milestones = Milestones(progress)
        self._done = 0

    def go_on(self, attempts: Attempts) -> int:
        """One GET from the byte reached; returns the bytes of the whole read. TryAgain: call it again."""
        if self._pin is None and self._done:  # bytes of two answers may be of two versions
            if self._milestones.told:
                raise UnderStoreError(f"{self._where}: broke off, and has no ETag to go on by")
            self._done = 0
        at, stop = self._start + self._done, self._start + len(self._buffer)
        body = self._api.get(self._key, at, stop, etag=self._pin)
        if body is None:
            self._check_end(at)
        else:
            with body:
                self._check(body, at)
                self._fill(body, min(stop, body.total) - self._start, attempts)
        self._milestones.ended(self._done)
        return self._done

    def _fill(self, body: ObjectBody, filled: int, attempts: Attempts) -> None:
        """Until `filled` bytes of the buffer are valid."""
        while self._done < filled:
            if attempts.remaining_s <= 0:
                raise UnderStoreError(f"{self._where}: no time left after {self._done} of {filled} bytes")
            with self._buffer[self._done : filled] as rest:
                count = body.read_into(rest)
            if not count:
                raise TryAgain(f"{self._where}: the answer ended after {self._done} of {filled} bytes")
            self._done += count
            self._milestones.passed(self._done)

    def _check(self, body: ObjectBody, at: int) -> None:
        if self._pin is not None and not body.etag:
            raise TryAgain(f"{self._where}: the answer has no ETag, version {self._pin} wanted")
        if self._pin is not None and body.etag != self._pin:
            raise StaleVersion(f"{self._where}: version {self._pin} wanted, {body.etag} found")
        wanted = min(self._start + len(self._buffer), body.total) - at
        if body.start != at or body.length < wanted or (body.length > wanted and not body.is_whole):
            raise TryAgain(
                f"{self._where}: asked for {wanted} bytes at {at}, answered {body.length} at {body.start}"
            )
        self._pin = body.etag or None

    def _check_end(self, at: int) -> None:
        """The store says that the object ends before `at`: so it must be ours, and end there."""
        if self._pin is None:
            return
        found = self._api.head(self._key)
        if found.etag != self._pin:
            raise StaleVersion(f"{self._where}: version {self._pin} wanted, {found.etag} found")
        if found.size > at:
            raise TryAgain(f"{self._where}: answered that nothing is at {at}, but size is {found.size}")

    @property
    def _where(self) -> str:
        return f"{self._api.url}/{self._key}"
