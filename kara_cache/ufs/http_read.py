"""One read of a range over HTTP, over as many requests as it takes. No answer is believed unchecked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from kara_cache.errors import StaleVersion, UnderStoreError
from kara_cache.ufs.base import FileInfo, Progress
from kara_cache.ufs.http_head import condition, content_length, content_range, encoding, version_of
from kara_cache.ufs.http_session import HttpResponse
from kara_cache.ufs.milestones import Milestones
from kara_cache.ufs.retry import Attempts, TryAgain

_SCRATCH_BYTES = 64 << 10


class HttpRead:
    """Fills a buffer from byte `start`; `go_on` until it returns, again after each TryAgain.

    The version is the caller's, or else that of the first answer: an answer of another version is
    never mixed in. A broken body is continued from the byte it broke at, where there is a version
    to continue by.

    Args:
        ask: sends a GET with these headers; returns only 200, 206, 412 and 416.
        info: the file as it is now, for an end that an answer claims without proof.
    """

    def __init__(
        self,
        start: int,
        buffer: memoryview,
        *,
        version: str,
        max_skip_bytes: int,
        progress: Progress | None,
    ) -> None:
        self._start = start
        self._buffer = buffer
        self._pinned = bool(version)
        self._version = version
        self._max_skip_bytes = max_skip_bytes
        self._milestones = Milestones(progress)
        self._done = 0  # bytes of the buffer that are valid
        self._at_end = not len(buffer)

    def go_on(
        self,
        ask: Callable[[dict[str, str]], HttpResponse],
        info: Callable[[], FileInfo],
        attempts: Attempts,
    ) -> int:
        """Bytes read. Raises TryAgain, StaleVersion, UnderStoreError; what `ask` and `info` raise passes."""
        while not self._at_end:
            if not self._version:
                self._start_over("it has neither ETag nor Last-Modified to continue by")
            at, stop = self._start + self._done, self._start + len(self._buffer)
            response = ask({"Range": f"bytes={at}-{stop - 1}", **condition(self._version)})
            try:
                self._take(response, info, attempts)
            finally:
                response.finish()
        self._milestones.ended(self._done)
        return self._done

    def _take(self, response: HttpResponse, info: Callable[[], FileInfo], attempts: Attempts) -> None:
        if response.status == 412:
            self._other_version(response, "another one (412)")
        elif response.status == 416:
            response.finish()  # `info` can use the connection
            self._check_end(response, info())
        elif coding := encoding(response.headers):
            raise UnderStoreError(
                f"{response.where}: Content-Encoding {coding} although identity was asked for"
            )
        elif response.status == 206:
            self._take_part(response, attempts)
        else:
            self._take_whole(response, attempts)

    def _take_part(self, response: HttpResponse, attempts: Attempts) -> None:
        at, stop = self._start + self._done, self._start + len(self._buffer)
        part = content_range(response.headers)
        length = content_length(response.headers)
        if part is None or part.start != at or part.stop > stop or length not in (None, part.length):
            answered = {name: response.headers.get(name) for name in ("Content-Range", "Content-Length")}
            raise TryAgain(f"{response.where}: asked for bytes {at}-{stop - 1}, answered {answered}")
        self._check_version(response, part.total)
        self._receive(response, self._done + part.length, attempts)
        if response.receive_into(memoryview(bytearray(1))):
            raise UnderStoreError(f"{response.where}: sends more than the {part.length} bytes it announced")
        self._at_end = self._done == len(self._buffer) or part.stop == part.total
        if not self._at_end and not self._version:
            raise TryAgain(f"{response.where}: sent a part of what was asked for, and no version to go on by")

    def _take_whole(self, response: HttpResponse, attempts: Attempts) -> None:
        """A server that knows no ranges sends everything: what comes before `start` is thrown away."""
        at, size = self._start + self._done, content_length(response.headers)
        self._check_version(response, size)
        if size is not None and at >= size:
            self._at_end = True
            return
        if at > self._max_skip_bytes:
            raise UnderStoreError(
                f"{response.where}: ignores Range, so {at} bytes come before those that were asked for "
                f"(limit {self._max_skip_bytes}, option max_skip_bytes)"
            )
        self._skip(response, at, attempts)
        stop = len(self._buffer) if size is None else min(len(self._buffer), size - self._start)
        self._receive(response, stop, attempts, may_end=response.says_its_end)
        self._at_end = True

    def _receive(
        self, response: HttpResponse, stop: int, attempts: Attempts, *, may_end: bool = False
    ) -> None:
        """Until `stop` bytes of the buffer are valid; less only if the end of the body proves the file's."""
        while self._done < stop:
            _check_time(response, attempts)
            with self._buffer[self._done : stop] as rest:
                count = response.receive_into(rest)
            if not count:
                if may_end:
                    return
                raise TryAgain(f"{response.where}: body ended {stop - self._done} bytes early")
            self._done += count
            self._milestones.passed(self._done)

    def _skip(self, response: HttpResponse, count: int, attempts: Attempts) -> None:
        scratch = memoryview(bytearray(min(count, _SCRATCH_BYTES)))
        while count:
            _check_time(response, attempts)
            skipped = response.receive_into(scratch[: min(count, len(scratch))])
            if not skipped:
                if response.says_its_end and content_length(response.headers) is None:
                    return  # the file is shorter than `start`; `_receive` will find nothing either
                raise TryAgain(f"{response.where}: body ended {count} bytes before the range asked for")
            count -= skipped

    def _check_version(self, response: HttpResponse, size: int | None) -> None:
        found = version_of(response.headers, size)
        if self._version and not found:
            raise TryAgain(f"{response.where}: does not say its version, {self._version} wanted")
        if self._version and found != self._version:
            self._other_version(response, found)
        self._version = found

    def _other_version(self, response: HttpResponse, found: str) -> NoReturn:
        message = f"{response.where}: version {self._version} wanted, {found} found"
        if self._pinned or self._milestones.told:
            raise StaleVersion(message)
        self._start_over(message)
        raise TryAgain(message)

    def _start_over(self, why: str) -> None:
        """Forgets what was read, unless somebody was told that it is valid and may have used it."""
        if self._milestones.told:
            raise UnderStoreError(f"broke off after {self._done} bytes that are in use already: {why}")
        self._done, self._version = 0, ""

    def _check_end(self, response: HttpResponse, now: FileInfo) -> None:
        at = self._start + self._done
        if self._version and now.version != self._version:
            self._other_version(response, now.version)
        if now.size > at:
            raise TryAgain(
                f"{response.where}: answers that nothing is at byte {at}, but its size is {now.size}"
            )
        self._at_end = True


def _check_time(response: HttpResponse, attempts: Attempts) -> None:
    if attempts.remaining_s <= 0:
        raise UnderStoreError(f"{response.where}: no time left (option timeout_s) in the middle of its body")
