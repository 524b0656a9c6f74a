"""Files on a web server: read-only, checked answer by answer."""

from __future__ import annotations

import errno
import io
import os
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec

from kara_cache.errors import ConfigError, UnderStoreError
from kara_cache.ufs.autoindex import autoindex_names
from kara_cache.ufs.base import FileInfo, Progress, UnderStoreWriter
from kara_cache.ufs.http_head import (
    content_length,
    content_range,
    encoding,
    modified_at,
    retry_after_s,
    version_of,
)
from kara_cache.ufs.http_read import HttpRead
from kara_cache.ufs.http_session import HttpMount, HttpResponse, HttpSession, tls_context
from kara_cache.ufs.options import parse_options
from kara_cache.ufs.path import check_path, listing_key
from kara_cache.ufs.per_process import PerProcess
from kara_cache.ufs.retry import Attempts, RetryRule, TryAgain

_MAX_PAGE_BYTES = 64 << 20  # of a listing: a million names of 64 bytes
_MAX_DEPTH = 100  # of a recursive listing: a server may link in circles
_GONE = (404, 410)
_REFUSED = (401, 403, 407, 451)
_NO_HEAD = (400, 401, 403, 405, 501)  # a GET may still be allowed: signed URLs are signed for one method
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)

_Answer = TypeVar("_Answer")


class HttpOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    headers: dict[str, str] = {}  # sent to the mount's own origin only, never along a redirect
    verify: bool = True  # the certificate; False is for tests
    ca: str = ""  # PEM file to trust in place of the system's
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0  # of a call with its retries, up to a fifth late
    retries: Annotated[int, msgspec.Meta(ge=0)] = 4
    max_skip_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20  # thrown away where Range is ignored
    allow_private: bool = False  # follow redirects from a public host to private addresses


class HttpStore:
    """An `UnderStore` over http(s)://host/root, without proxies.

    The version is the strong ETag, else weak ETag, Last-Modified and size. Limits: Last-Modified has
    whole seconds, so that an overwrite with the same size in the same second goes unnoticed where
    there is no ETag (nginx's own ETag is made of just these two); and a server that answers 200 with
    an error page for what is missing has that page as its content: nobody can tell. A web server that
    sends a file while it is overwritten in place sends a mixture under one ETag: replace by rename.

    `list` reads the index pages that web servers make, and asks for each file's size and version;
    nginx leaves names with a leading dot out of its pages.
    A path is a directory when the server redirects it to itself with a "/", as they all do.

    Names are resolved by the system, in its own time (resolv.conf), which no timeout of ours ends.
    """

    def __init__(
        self, url: str, options: HttpOptions, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        root = urlsplit(url)
        if root.scheme not in ("http", "https") or not root.hostname:
            raise ConfigError(f"store {root.scheme}://{root.hostname or ''}: expected http(s)://host/path")
        if root.fragment:
            raise ConfigError(
                f"store {root.scheme}://{root.hostname}: a URL with #fragment has no files below it"
            )
        self._root = root._replace(
            netloc=root.netloc.rpartition("@")[2],
            path=quote(root.path.rstrip("/"), safe="/%~!$&'()*+,;=:@"),
        )
        self._url = self._root._replace(query="").geturl()
        self._options = options
        self._rule = RetryRule(options.retries, options.timeout_s, sleep=sleep)
        mount = HttpMount(
            home=self._root,
            credentials=_credentials(root, options.headers),
            tls=_tls_context(options, self._url) if root.scheme == "https" else None,
            allow_private=options.allow_private,
            silence_s=options.timeout_s / 5,
        )
        self._sessions = PerProcess(lambda: HttpSession(mount), HttpSession.close)

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any]) -> HttpStore:
        """A user and password in the URL become Basic authentication; a query is sent with every request."""
        public = urlsplit(url)._replace(query="", fragment="")
        where = public._replace(netloc=public.netloc.rpartition("@")[2]).geturl()
        return cls(url, parse_options(options, HttpOptions, url=where))

    @property
    def url(self) -> str:
        return self._url

    def info(self, path: str) -> FileInfo:
        if not check_path(path):
            return FileInfo("", 0, "", is_dir=True)  # many servers refuse to show "/" and serve what is below
        return self._call(lambda session, attempts: self._info(session, attempts, path))

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        found = self.info(path)
        if not found.is_dir:
            return iter((found,))
        return self._below(path, recursive, 0)

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        if start < 0:
            raise ValueError(f"{self._url}/{path}: start {start} is negative")
        if not check_path(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._url)
        read = HttpRead(
            start,
            buffer,
            version=version or "",
            max_skip_bytes=self._options.max_skip_bytes,
            progress=progress,
        )

        def attempt(session: HttpSession, attempts: Attempts) -> int:
            def ask(headers: dict[str, str]) -> HttpResponse:
                return self._ask(session, "GET", path, attempts, headers, also=(412, 416))

            return read.go_on(ask, lambda: self.info(path), attempts)

        return self._call(attempt)

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        self._refuse(path)

    def open_writer(self, path: str, *, append: bool = False) -> UnderStoreWriter:
        self._refuse(path)

    def delete(self, path: str) -> None:
        self._refuse(path)

    def make_directory(self, path: str) -> None:
        self._refuse(path)

    def close(self) -> None:
        self._sessions.close()

    def __repr__(self) -> str:
        return f"<HttpStore {self._url}>"

    def _refuse(self, path: str) -> NoReturn:
        check_path(path)
        raise io.UnsupportedOperation(f"{self._url}/{path}: HTTP stores are read-only")

    def _call(self, attempt: Callable[[HttpSession, Attempts], _Answer]) -> _Answer:
        session = self._sessions.get()
        attempts = Attempts(self._rule, session.budget)
        while True:
            try:
                return attempt(session, attempts)
            except TryAgain as error:
                failure = error
            attempts.wait_or_raise(failure, retry_after_s=failure.retry_after_s)

    def _ask(
        self,
        session: HttpSession,
        method: str,
        path: str,
        attempts: Attempts,
        headers: Mapping[str, str],
        *,
        also: tuple[int, ...] = (),
    ) -> HttpResponse:
        """A response with status 200, 206 or one of `also`; everything else is raised."""
        target = self._url_of(path)
        response = session.send(method, target, headers, attempts)
        if _is_directory(target, response.url):
            response.finish()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{self._url}/{path}")
        if response.status in (200, 206, *also):
            return response
        response.finish()
        raise _error_of(response)

    def _url_of(self, path: str) -> str:
        below = quote(path.encode("utf-8", "surrogateescape"), safe="/")
        return self._root._replace(path=f"{self._root.path}/{below}").geturl()

    def _info(self, session: HttpSession, attempts: Attempts, path: str) -> FileInfo:
        try:
            response = self._ask(session, "HEAD", path, attempts, {}, also=_NO_HEAD)
            response.finish()
            size = None if response.status in _NO_HEAD else content_length(response.headers)
            if not size:  # 0 is rare for a file, and common for a server that makes nothing of HEAD
                first = self._ask(session, "GET", path, attempts, {"Range": "bytes=0-0"}, also=(416,))
                first.finish()
                if size == 0 and first.status == 416:
                    first = response  # nginx says no version in a 416
                response, size = first, _size_of_first_byte(first)
        except IsADirectoryError:
            return FileInfo(path, 0, "", is_dir=True)
        if coding := encoding(response.headers):
            raise UnderStoreError(
                f"{response.where}: Content-Encoding {coding} although identity was asked for"
            )
        return FileInfo(path, size, version_of(response.headers, size), modified_at(response.headers))

    def _below(self, path: str, recursive: bool, depth: int) -> Iterator[FileInfo]:
        if depth > _MAX_DEPTH:
            raise UnderStoreError(f"{self._url}/{path}: more than {_MAX_DEPTH} directories deep")
        prefix = path + "/" if path else ""
        for name in self._index(prefix):
            child = prefix + name.removesuffix("/")
            if not name.endswith("/"):
                try:
                    yield self.info(child)
                except FileNotFoundError:  # deleted since the page was made
                    continue
            elif recursive:
                yield from self._below(child, True, depth + 1)
            else:
                yield FileInfo(child, 0, "", is_dir=True)

    def _index(self, prefix: str) -> tuple[str, ...]:
        """Names in a directory, in the order of listings; directories end in "/"."""
        page, url = self._call(lambda session, attempts: self._index_page(session, attempts, prefix))
        names = autoindex_names(page, url)
        if names is None:
            raise io.UnsupportedOperation(
                f"{url} is not a listing: HTTP has only the index pages that some servers make"
            )
        keys = (listing_key(name.removesuffix("/"), name.endswith("/")) for name in names)
        return tuple(sorted(keys))

    def _index_page(self, session: HttpSession, attempts: Attempts, prefix: str) -> tuple[str, str]:
        response = self._ask(session, "GET", prefix, attempts, {})
        try:
            kind = response.headers.get("Content-Type", "text/html").partition(";")[0].strip().lower()
            if kind != "text/html" or encoding(response.headers):
                raise io.UnsupportedOperation(
                    f"{response.url} is {kind}, not an index page: HTTP cannot list"
                )
            body = response.read_all(_MAX_PAGE_BYTES, attempts)
        finally:
            response.finish()
        return body.decode("utf-8", "surrogateescape"), response.url


def _credentials(root: SplitResult, headers: Mapping[str, str]) -> dict[str, str]:
    found = dict(headers)
    if root.username is not None:
        pair = f"{unquote(root.username)}:{unquote(root.password or '')}"
        found["Authorization"] = "Basic " + b64encode(pair.encode()).decode()
    return found


def _tls_context(options: HttpOptions, url: str) -> ssl.SSLContext:
    try:
        return tls_context(options.ca, verify=options.verify)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"store {url}: option ca {options.ca!r}: {error}") from error


def _is_directory(asked: str, answered: str) -> bool:
    """Whether redirects did nothing but add the "/" of a directory."""
    if asked == answered:
        return False
    return unquote(urlsplit(answered).path) == unquote(urlsplit(asked).path) + "/"


def _size_of_first_byte(response: HttpResponse) -> int:
    """The file's size, from the answer to `Range: bytes=0-0`."""
    part = content_range(response.headers)
    if response.status == 206 and part is not None and part.start == 0 and part.total is not None:
        return part.total
    if response.status == 416 and response.headers.get("Content-Range", "").strip() == "bytes */0":
        return 0
    length = content_length(response.headers)
    if response.status == 200 and length is not None:
        return length
    raise UnderStoreError(f"{response.where}: status {response.status} does not say how large the file is")


def _error_of(response: HttpResponse) -> Exception:
    text = f"HTTP status {response.status}"
    if response.status in _GONE:
        return FileNotFoundError(errno.ENOENT, text, response.where)
    if response.status in _REFUSED:
        return PermissionError(errno.EACCES, text, response.where)
    if response.status in _TRY_AGAIN or response.status >= 505:
        wait_s = retry_after_s(response.headers, time.time())
        return TryAgain(f"{response.where}: {text}", retry_after_s=wait_s)
    return UnderStoreError(f"{response.where}: {text}")
