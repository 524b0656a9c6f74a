"""An under store over a bucket: the laws of `UnderStore` on the calls of `ObjectApi`."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from functools import partial

from kara_cache.ufs.base import FileInfo, Progress
from kara_cache.ufs.object_api import ObjectApi, ObjectFacts, ObjectPage
from kara_cache.ufs.object_read import RangeRead
from kara_cache.ufs.object_retries import Retries
from kara_cache.ufs.object_uploads import UnfinishedUploads
from kara_cache.ufs.object_writer import AppendWriter, EarlierUpload, ObjectWriter
from kara_cache.ufs.path import check_path, listing_key
from kara_cache.ufs.retry import RetryRule

SINGLE_PUT_BYTES = 32 << 20  # a larger `write` goes up in parts, several at a time
_PAGE_KEYS = 1000  # the most that S3 and OSS list at once

_Keys = list[str]  # in ObjectStore `list` is the verb

logger = logging.getLogger(__name__)


class ObjectStore:
    """Files are the keys below a prefix of a bucket, versions their ETags.

    Directories are what the keys imply: they appear with their first file and go with their last,
    `make_directory` is a no-op, and a file may have children ("a" beside "a/b"). Markers that
    consoles leave for folders (keys that end in "/") are no files. Keys that no path can name
    ("a//b", "../a") are left out of listings, with a warning.

    A call takes at most the rule's `timeout_s` and the timeouts of one request more.
    """

    def __init__(self, api: ObjectApi, prefix: str, rule: RetryRule) -> None:
        """`prefix` has no slash at either end; "" is the whole bucket."""
        self._api = api
        self._root = prefix + "/" if prefix else ""
        self._retries = Retries(rule)

    @property
    def url(self) -> str:
        return f"{self._api.url}/{self._root}".rstrip("/")

    def info(self, path: str) -> FileInfo:
        key = self._root + check_path(path)
        if path:
            try:
                return self._file(self._retries.run(lambda: self._api.head(key)))
            except FileNotFoundError:
                pass  # a directory, perhaps
        if not self._keys_below(path, 1) and path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._full(path))
        return FileInfo(path, 0, "", is_dir=True)

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        return self._listed(check_path(path), recursive)

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        check_path(path)
        if start < 0:
            raise ValueError(f"{self._full(path)}: start {start} is negative")
        if not path:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._full(path))
        if not len(buffer):
            return 0
        read = RangeRead(self._api, self._root + path, start, buffer, version or None, progress)
        try:
            return self._retries.run_timed(read.go_on)
        except FileNotFoundError:
            if self._keys_below(path, 1):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._full(path)) from None
            raise

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        if len(data) > SINGLE_PUT_BYTES:
            with self.open_writer(path) as writer:
                writer.write(data)
                return writer.commit()
        key = self._file_key(path)
        etag = self._retries.run(lambda: self._api.put(key, data))
        return self._written(path, len(data), etag)

    def open_writer(self, path: str, *, append: bool = False) -> ObjectWriter | AppendWriter:
        """Parts go up while they are written; an append, where the store can, is kept in memory."""
        kind = AppendWriter if append else ObjectWriter
        return kind(self._api, self._file_key(path), self._retries, partial(self._written, path))

    def unfinished(self, directory: str) -> UnfinishedUploads:
        """Sends nothing before it has to."""
        prefix = self._below(check_path(directory))

        def go_on(path: str, earlier: EarlierUpload) -> ObjectWriter:
            finish = partial(self._written, path)
            return ObjectWriter(self._api, self._file_key(path), self._retries, finish, earlier=earlier)

        return UnfinishedUploads(self._api, self._root, prefix, self._retries, go_on)

    def delete(self, path: str) -> None:
        key = self._root + check_path(path)
        if not path:
            raise PermissionError(errno.EPERM, "the root of a store is not deleted", self._full(path))
        try:
            self._retries.run(lambda: self._api.head(key))
        except FileNotFoundError:
            below = self._keys_below(path, 2)
            if not below:
                raise
            key += "/"  # the marker of an empty folder
            if below != [key]:
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self._full(path)) from None
        self._retries.run(lambda: self._api.delete(key))

    def make_directory(self, path: str) -> None:
        """Nothing to do: a directory is there when something is in it."""
        check_path(path)

    def close(self) -> None:
        self._api.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def _full(self, path: str) -> str:
        return f"{self._api.url}/{self._root}{path}".rstrip("/")

    def _file_key(self, path: str) -> str:
        if not check_path(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._full(path))
        return self._root + path

    def _file(self, facts: ObjectFacts) -> FileInfo:
        return FileInfo(facts.key[len(self._root) :], facts.size, facts.etag, facts.mtime)

    def _written(self, path: str, size: int, etag: str) -> FileInfo:
        """What was just written; with its time, unless somebody has overwritten it since."""
        try:
            facts = self._retries.run(lambda: self._api.head(self._root + path))
        except OSError:  # writing was allowed and has happened; looking may not be
            return FileInfo(path, size, etag)
        return FileInfo(path, size, etag) if etag not in ("", facts.etag) else self._file(facts)

    def _below(self, path: str) -> str:
        return f"{self._root}{path}/" if path else self._root

    def _keys_below(self, path: str, limit: int) -> _Keys:
        page = self._page(self._below(path), delimiter="", token="", limit=limit)
        return [facts.key for facts in page.objects]

    def _page(self, prefix: str, *, delimiter: str, token: str, limit: int = _PAGE_KEYS) -> ObjectPage:
        return self._retries.run(
            lambda: self._api.page(prefix, delimiter=delimiter, token=token, limit=limit)
        )

    def _listed(self, path: str, recursive: bool) -> Iterator[FileInfo]:
        prefix, token = self._below(path), ""
        found, unnamed = not path, 0
        while True:
            page = self._page(prefix, delimiter="" if recursive else "/", token=token)
            found = found or bool(page.objects or page.prefixes)
            for info in self._entries(page):
                if _is_named(info):
                    yield info
                elif not _is_marker(info):
                    unnamed += 1
            token = page.next_token
            if not token:
                break
        if not found:
            yield self._file(self._retries.run(lambda: self._api.head(self._root + path)))
        if unnamed:
            logger.warning("%s: %d keys that no path can name are left out", self._full(path), unnamed)

    def _entries(self, page: ObjectPage) -> Iterator[FileInfo]:
        """Files, markers and directories of one page in the order of their keys."""
        entries = [self._file(facts) for facts in page.objects]
        entries += [FileInfo(name[len(self._root) : -1], 0, "", is_dir=True) for name in page.prefixes]
        entries.sort(key=lambda info: listing_key(info.path, info.is_dir))
        return iter(entries)


def _is_marker(info: FileInfo) -> bool:
    return not (info.is_dir or info.size) and (not info.path or info.path.endswith("/"))


def _is_named(info: FileInfo) -> bool:
    try:
        return bool(check_path(info.path))
    except ValueError:
        return False
