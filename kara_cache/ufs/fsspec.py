"""Any store that fsspec knows: the way to everything without an adapter of its own."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from kara_cache.errors import ConfigError, KaraError, StaleVersion
from kara_cache.ufs.base import FileInfo, Progress
from kara_cache.ufs.fsspec_info import file_info
from kara_cache.ufs.fsspec_writer import FsspecWriter, Put
from kara_cache.ufs.local_writer import TEMPORARY
from kara_cache.ufs.path import check_path, listing_key
from kara_cache.ufs.per_process import PerProcess
from kara_cache.ufs.retry import Attempts, RetryBudget, RetryRule, TryAgain

_RULE = RetryRule(retries=2, timeout_s=60.0)  # most file systems retry inside, too
_USER_INFO = re.compile(r"(?<=//)[^/@]*@")
_FACTS = {
    FileNotFoundError: errno.ENOENT,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    FileExistsError: errno.EEXIST,
}

_Answer = TypeVar("_Answer")


class FsspecStore:
    """An `UnderStore` over a file system of fsspec; keeps the laws as far as its interface reaches.

    - fsspec has no conditional read. The version is compared after each read (and taken before it,
      when the caller has none): a file that is overwritten during a read and then again with its old
      stamps goes unnoticed, and so does every change where the file system says nothing that could
      be compared (`fsspec_info.version_of` is "").
    - A read is one `cat_file`: its bytes are copied once, and `progress` hears of them at the end.
    - Timeouts are the file system's own, set by its options; ours bound only the retries.
    - `list` holds one directory at a time, because `ls` has no pages.
    - `write` replaces by the file system's own rename where it has one. Where it has none (object
      stores, mostly) the file is put as a whole, which is as atomic as the store makes it.

    Args:
        url: may be chained (`zip://::s3://...`); user and password in it are not shown.
        options: storage options of the file system.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = _USER_INFO.sub("", url).rstrip("/")
        self._source = url, options
        self._systems = PerProcess(self._open, lambda _: None)
        self._budgets = PerProcess(RetryBudget, lambda _: None)
        self._systems.get()  # a wrong option or a missing library shows here, not in a job

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any]) -> FsspecStore:
        return cls(url, options)

    @property
    def url(self) -> str:
        return self._url

    def info(self, path: str) -> FileInfo:
        return self._call(check_path(path), lambda system, full: _info(system, full, path))

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        found = self.info(path)
        if not found.is_dir:
            return iter((found,))
        return self._below(path, recursive)

    def read_into(
        self,
        path: str,
        start: int,
        buffer: memoryview,
        *,
        version: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        where, stop = f"{self._url}/{check_path(path)}", start + len(buffer)
        if start < 0:
            raise ValueError(f"{where}: start {start} is negative")

        def attempt(system: AbstractFileSystem, full: str) -> bytes:
            return _read(system, full, where, start, stop, version=version)

        data = self._call(path, attempt)
        buffer[: len(data)] = data
        if progress is not None:
            progress(len(data))
        return len(data)

    def write(self, path: str, data: bytes | bytearray | memoryview) -> FileInfo:
        return self._replace(check_path(path), lambda system, target: system.pipe_file(target, bytes(data)))

    def open_writer(self, path: str, *, append: bool = False) -> FsspecWriter:
        check_path(path)
        if append:
            raise io.UnsupportedOperation(f"{self._url}/{path}: fsspec cannot append and show it all at once")
        return FsspecWriter(lambda put: self._replace(path, put))

    def delete(self, path: str) -> None:
        def attempt(system: AbstractFileSystem, full: str) -> None:
            if not _info(system, full, path).is_dir:
                system.rm_file(full)
            elif _children(system, full):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), f"{self._url}/{path}")
            else:
                system.rmdir(full)

        self._call(check_path(path), attempt)

    def make_directory(self, path: str) -> None:
        self._call(check_path(path), lambda system, full: system.makedirs(full, exist_ok=True))

    def close(self) -> None:
        self._systems.close()

    def __repr__(self) -> str:
        return f"<FsspecStore {self._url}>"

    def _open(self) -> tuple[AbstractFileSystem, str]:
        """A file system for this process alone: instances that fsspec shares do not all survive a fork."""
        url, options = self._source
        own = {key: dict(value) if isinstance(value, Mapping) else value for key, value in options.items()}
        try:
            system, root = url_to_fs(url, skip_instance_cache=True, **own)  # changes nested options
        except (ImportError, TypeError, ValueError) as error:
            raise ConfigError(f"store {self._url}: {error}") from error
        return system, root.rstrip("/")

    def _call(self, path: str, attempt: Callable[[AbstractFileSystem, str], _Answer]) -> _Answer:
        """Runs `attempt(file system, its name for the path)`, again after what may pass."""
        system, root = self._systems.get()
        attempts = Attempts(_RULE, self._budgets.get())
        where = f"{self._url}/{path}"
        full = f"{root}/{path}" if root and path else root or path
        while True:
            try:
                return attempt(system, full)
            except NotImplementedError as error:
                raise io.UnsupportedOperation(f"{where}: its file system cannot do this: {error}") from error
            except (KaraError, io.UnsupportedOperation):
                raise
            except TryAgain as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - every file system has classes of its own
                _raise_fact(error, where)
                failure = TryAgain(f"{where}: {error!r}")
                failure.__cause__ = error
            attempts.wait_or_raise(failure)

    def _replace(self, path: str, put: Put) -> FileInfo:
        def attempt(system: AbstractFileSystem, full: str) -> FileInfo:
            if type(system).mv is AbstractFileSystem.mv:  # copies and deletes: a put is no worse
                put(system, full)
                return _info(system, full, path)
            if system.isdir(full):  # into which `mv` would move the file
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{self._url}/{path}")
            parent = full.rpartition("/")[0]
            temporary = f"{parent}/.kara-tmp-{secrets.token_hex(8)}"
            try:
                _put_with_parents(system, temporary, put)
                system.mv(temporary, full)
            except BaseException:
                with suppress(Exception):  # the failure itself says more
                    system.rm_file(temporary)
                raise
            return _info(system, full, path)

        return self._call(path, attempt)

    def _below(self, path: str, recursive: bool) -> Iterator[FileInfo]:
        for info in self._call(path, lambda system, full: _listing(system, full, path)):
            if not (recursive and info.is_dir):
                yield info
            else:
                with suppress(FileNotFoundError):  # deleted since it was listed
                    yield from self._below(info.path, True)


def _raise_fact(error: Exception, where: str) -> None:
    """Raises what says something about the file, with its errno, which many file systems leave out."""
    for fact, code in _FACTS.items():
        if isinstance(error, fact):
            raise fact(code, os.strerror(code), where) from error
    if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
        raise error


def _info(system: AbstractFileSystem, full: str, path: str) -> FileInfo:
    system.invalidate_cache(full)  # a listing that it remembers is no current information
    return file_info(system, system.info(full), path)


def _read(
    system: AbstractFileSystem, full: str, where: str, start: int, stop: int, *, version: str | None
) -> bytes:
    version = version or _info(system, full, where).version
    failure: Exception | None = None
    data = b""
    try:
        data = system.cat_file(full, start=start, end=stop)  # by keyword: s3fs has version_id in between
    except Exception as error:  # noqa: BLE001 - gone, a directory, or a range behind the end: `now` tells
        failure = error
    now = _info(system, full, where)
    if now.is_dir:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), where)
    if now.version != version:
        raise StaleVersion(f"{where}: version {version} wanted, {now.version} found")
    length = max(0, min(stop, now.size) - start)
    if not length:
        return b""
    if failure is not None:
        raise failure
    if len(data) != length:
        raise TryAgain(f"{where}: asked for {length} bytes at {start}, got {len(data)}")
    return data


def _put_with_parents(system: AbstractFileSystem, target: str, put: Put) -> None:
    try:
        put(system, target)
    except FileNotFoundError:
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        put(system, target)


def _children(system: AbstractFileSystem, full: str) -> dict[str, Mapping[str, Any]]:
    """What `ls` says, by name. Some list a marker of the directory itself."""
    system.invalidate_cache(full)
    found = system.ls(full, detail=True)
    own = full.strip("/")
    names = {entry["name"].rstrip("/"): entry for entry in found if entry["name"].strip("/") != own}
    return {name.rpartition("/")[2]: entry for name, entry in names.items()}


def _listing(system: AbstractFileSystem, full: str, path: str) -> tuple[FileInfo, ...]:
    prefix = path + "/" if path else ""
    found = [
        file_info(system, entry, prefix + name)
        for name, entry in _children(system, full).items()
        if entry.get("type") in ("file", "directory") and not TEMPORARY.fullmatch(name)
    ]
    return tuple(sorted(found, key=lambda info: listing_key(info.path, info.is_dir)))
