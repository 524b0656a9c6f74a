"""What fsspec finds behind `oss`: ossfs where it is installed, else a class that only takes urls apart.

fsspec asks the class of a store to read `kara::oss://...` before the cache sees it, and never makes an
instance of it. ossfs, which it looks for, pins an exact version of oss2; nobody should need it for that.
"""

from __future__ import annotations

from typing import Any

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path


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


try:
    from ossfs import OSSFileSystem  # type: ignore[import-not-found, unused-ignore]
except ModuleNotFoundError as error:
    if error.name != "ossfs":
        raise
    OSSFileSystem = OssUrls

__all__ = ["OSSFileSystem"]
