"""Where data sets are: any url that `KaraStorage` takes, as a store and a prefix in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kara_cache import ufs
from kara_cache.attachment import Attachment
from kara_cache.config import ClientConfig
from kara_cache.errors import StaleVersion, UnderStoreError
from kara_cache.kara_url import scheme_of
from kara_cache.storage.cached_store import CachedStore
from kara_cache.store_options import store_options
from kara_cache.ufs.base import UnderStore
from kara_cache.ufs.path import check_path

_CHAIN = "kara::"
_KNOWN = ("file", "http", "https", "oss", "s3")
_ATTEMPTS = 30  # to read a small file that somebody replaces, once in a millisecond if it is local
_READ_ONLY = frozenset({"http", "https"})
_APP_KEYS = {"app_key": "access_key_id", "app_secret": "secret_access_key"}  # for s3; oss knows them itself


def open_location(url: str, **options: Any) -> Location:
    """The place that `url` names; nothing is sent, and nothing need be there.

    Args:
        url: `file:///absolute`, `file://relative/to/cwd`, `http(s)://host/prefix`,
            `oss://endpoint/bucket[/prefix]`, `s3://bucket[/prefix]`, or `kara::` and one of these, which
            reads through the cache: the cluster that is configured, else this user's private worker.
            A `?query` and a `#fragment` are cut off.
        options: The store's: `app_key`, `app_secret`, `use_ssl` for OSS, `headers` for HTTP, all that
            `store_options` takes. With `kara::` also `kara={...}`, keys of `ClientConfig`.

    Raises:
        ValueError: an unknown scheme.
        ConfigError: an unknown option (the message names the known ones), or a library is missing.
    """
    return Location(url, options)


class Location:
    """A store and a prefix in it. Pickles as its arguments, usable in a forked child and by all threads."""

    url: str
    """For messages: no secret in it."""
    store: UnderStore
    root: str
    """The prefix, a path in `store`; "" where the store begins at the url itself."""
    local: Path | None
    """The directory, where `url` is file:// and not chained."""
    writable: bool

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        chain = _CHAIN if url.startswith(_CHAIN) else ""
        scheme = _scheme(url.removeprefix(_CHAIN))
        target = _bare(url.removeprefix(_CHAIN), scheme)
        self._arguments = (chain + target, dict(options))
        options = dict(options)
        cache_options = options.pop("kara", None) if chain else None
        given = _translated(scheme, target, options)
        self.root, self.local, self.writable = "", None, scheme not in _READ_ONLY
        if chain:
            self.store = _through_cache(target, scheme, given, cache_options)
        elif scheme == "file":
            path = target.partition("://")[2]
            # The whole tree is the store, so that the directory may be made, and links in it may leave it.
            self.store, self.root, self.local = ufs.open_store("file:///", given), path.strip("/"), Path(path)
        else:
            self.store = _open_store(target, scheme, given)
        self.url = f"{chain}{self.store.url.rstrip('/')}" if self.local is None else f"file://{self.local}"

    @property
    def cached(self) -> CachedStore | None:
        """The store, where it is read through the cache: it has the client and its paths."""
        return self.store if isinstance(self.store, CachedStore) else None

    def path(self, *parts: object) -> str:
        """The path in `store` of something below this location: `path("row", namespace, key)`.

        A part may hold "/" and be empty, as the namespaces that people use.

        Raises:
            ValueError: a part that would lead elsewhere: "..", ".", "//", a slash at an end, NUL.
        """
        names = [str(part) for part in parts]
        for name in names:
            check_path(name)
        return "/".join(name for name in (self.root, *names) if name)

    def read(self, path: str) -> bytes:
        """A small file as a whole, of one version. Raises FileNotFoundError."""
        return read_whole(self.store, path)

    def close(self) -> None:
        """Ends connections. Idempotent."""
        self.store.close()

    def __reduce__(self) -> tuple[Callable[..., Location], tuple[Any, ...]]:
        return Location, self._arguments

    def __repr__(self) -> str:
        return f"<Location {self.url}>"


def read_whole(store: UnderStore, path: str) -> bytes:
    """One version of a file. Raises FileNotFoundError; StaleVersion where it is replaced all the time."""
    for attempt in range(1, _ATTEMPTS + 1):
        found = store.info(path)
        buffer = bytearray(found.size)
        try:
            got = store.read_into(path, 0, memoryview(buffer), version=found.version or None)
        except StaleVersion:
            if attempt == _ATTEMPTS:
                raise
            continue
        if got == found.size:
            return bytes(buffer)
    raise UnderStoreError(f"{store.url}/{path}: {got} of {found.size} bytes")


def _scheme(url: str) -> str:
    scheme = "file" if url.startswith("file:") else scheme_of(url)
    if scheme not in _KNOWN:
        raise ValueError(f"Unknown scheme `{url.partition(':')[0]}`: known are {', '.join(_KNOWN)}")
    return scheme


def _bare(url: str, scheme: str) -> str:
    """Without query and fragment; a file's path made absolute as the published package reads it."""
    parts = urlsplit(url)
    if scheme != "file":
        return parts._replace(query="", fragment="").geturl()
    path = (os.path.abspath(parts.netloc) if parts.netloc else "") + parts.path
    return f"file://{os.path.abspath(path)}"


def _translated(scheme: str, url: str, options: dict[str, Any]) -> dict[str, Any]:
    if scheme == "s3":
        return {_APP_KEYS.get(key, key): value for key, value in options.items()}
    if scheme == "oss" and "app_key" in options and not {"region", "signature"} & options.keys():
        host = urlsplit(url).hostname or ""
        if not host.endswith(".aliyuncs.com"):
            # V4 needs a region, which only Alibaba's own endpoints tell; the published package signs with V1.
            return {**options, "signature": "v1"}
    return options


def _open_store(url: str, scheme: str, options: Mapping[str, Any]) -> UnderStore:
    return ufs.open_store(url, store_options(scheme, options))


def _through_cache(
    url: str, scheme: str, options: Mapping[str, Any], cache_options: Mapping[str, Any] | None
) -> CachedStore:
    if options:
        _open_store(url, scheme, options).close()  # says now what is wrong with them
    config = ClientConfig.load(**(cache_options or {}))
    # A private worker reaches a store only with options that were given, even if there are none to give.
    return CachedStore(Attachment(config, stores={scheme: options}), url)
