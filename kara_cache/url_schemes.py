"""What fsspec finds behind `http`, `https`, `s3` and `oss`: the classes it looks for where they are
installed, else ones that only take urls apart, so that `kara::https://...` needs no more than this package.

fsspec asks the class of a store to read a chained url before the cache sees it, and never makes an
instance of it. Its own for http wants aiohttp, s3fs pins a botocore that other libraries exclude, ossfs an
exact version of oss2.
"""

from __future__ import annotations

import importlib
from typing import Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path


class HttpUrls(AbstractFileSystem):
    """Spells names as fsspec's HTTPFileSystem does: the whole url."""

    protocol = ("http", "https")

    def __init__(self, *args: object, **options: object) -> None:
        raise ImportError(
            "https:// without the cache needs aiohttp (pip install aiohttp); kara::https:// does not"
        )

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path


class S3Urls(AbstractFileSystem):
    """Spells names as s3fs does: bucket and key."""

    protocol = ("s3", "s3a")

    def __init__(self, *args: object, **options: object) -> None:
        raise ImportError("s3:// without the cache needs s3fs (pip install s3fs); kara::s3:// does not")


class OssUrls(AbstractFileSystem):
    """Spells names as ossfs does: a leading slash, then bucket and key, or endpoint, bucket and key."""

    protocol = "oss"
    root_marker = "/"

    def __init__(self, *args: object, **options: object) -> None:
        raise ImportError("oss:// without the cache needs ossfs (pip install ossfs); kara::oss:// does not")

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return "/" + stringify_path(path).removeprefix("oss://").strip("/")


_FOUND_IN = {
    "HTTPFileSystem": ("fsspec.implementations.http", ("aiohttp", "yarl"), HttpUrls),
    "S3FileSystem": ("s3fs", ("s3fs",), S3Urls),
    "OSSFileSystem": ("ossfs", ("ossfs",), OssUrls),
}


def __getattr__(name: str) -> type[AbstractFileSystem]:
    """Looked up when fsspec asks, so that importing this module loads neither library."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needs, instead = _FOUND_IN[name]
    try:
        found: type[AbstractFileSystem] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in needs:
            raise
        return instead
    return found
