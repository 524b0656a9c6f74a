"""Under stores: where the files are that the cache keeps pages of.

`open_store` is the only way the rest of the project makes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kara_cache.errors import ConfigError
from kara_cache.ufs.base import FileInfo, Progress, UnderStore, UnderStoreWriter

__all__ = ["FileInfo", "Progress", "UnderStore", "UnderStoreWriter", "open_store"]


@dataclass(frozen=True, slots=True)
class _Kind:
    module: str
    name: str  # of a class with `from_url(url, options) -> UnderStore`
    extra: str = ""  # of pip; "" where the base install is enough


_LOCAL = _Kind("kara_cache.ufs.local", "LocalStore")
_HTTP = _Kind("kara_cache.ufs.http", "HttpStore")
_OSS = _Kind("kara_cache.ufs.oss", "OssStore", extra="oss")
_S3 = _Kind("kara_cache.ufs.s3", "S3Store", extra="s3")
_FSSPEC = _Kind("kara_cache.ufs.fsspec", "FsspecStore")
_SCHEMES = {
    "file": _LOCAL,
    "local": _LOCAL,
    "http": _HTTP,
    "https": _HTTP,
    "oss": _OSS,
    "s3": _S3,
    "s3a": _S3,
}


def open_store(url: str, options: Mapping[str, Any] | None = None) -> UnderStore:
    """The store whose root is `url`; nothing is sent before its first use, unless fsspec does.

    Schemes without an adapter of their own go to fsspec, if it knows them; so does a chained URL
    (`zip://::s3://...`).

    Raises:
        ConfigError: an unknown scheme or option, or a library that is not installed (the message
            says which extra has it).
    """
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        if not url.startswith("/"):
            raise ConfigError(f"store {url!r}: expected scheme://... or an absolute path")
        scheme = "file"
    kind = _FSSPEC if "::" in url else _SCHEMES.get(scheme.lower(), _FSSPEC)
    if kind is _FSSPEC:
        _check_fsspec_knows(scheme.partition("::")[0], url)
    try:
        store_class = getattr(import_module(kind.module), kind.name)
    except ModuleNotFoundError as error:
        if not kind.extra:
            raise
        raise ConfigError(f"{scheme}:// needs {error.name}: pip install kara-cache[{kind.extra}]") from error
    store: UnderStore = store_class.from_url(url, options or {})
    return store


def _check_fsspec_knows(protocol: str, url: str) -> None:
    from fsspec import get_filesystem_class  # 30 ms, and most processes never ask

    if "kara" in (part.partition("://")[0] for part in url.split("::")):
        raise ConfigError(f"store {protocol}://...: a cache cannot be its own under store")
    try:
        get_filesystem_class(protocol)
    except ValueError as error:
        own = ", ".join(sorted(_SCHEMES))
        raise ConfigError(
            f"scheme {protocol!r} is not known; known are {own}, and those of fsspec"
        ) from error
    except ImportError as error:
        raise ConfigError(f"scheme {protocol!r}: {error}") from error
