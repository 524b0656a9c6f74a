"""What the client keeps ready for reads of one version of one file."""

from __future__ import annotations

from kara_cache.page import file_id
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import RangeFile, read_target


class CachedFile:
    """Immutable but for hints that threads may overwrite at will (`last_page`, `routes`).

    Quoting a path and hashing an identity for each read of 4 KiB would cost more than to verify it.
    """

    __slots__ = (
        "file_id",
        "info",
        "last_page",
        "paging",
        "path",
        "range_file",
        "read_through",
        "reading",
        "replicas",
        "routes",
        "size",
    )

    def __init__(self, info: FileInfo, *, replicas: int = 1) -> None:
        """`replicas` owners of each stripe keep its pages; each process begins with one of its own."""
        self.info = info
        self.replicas = replicas
        self.path = info.path
        self.size = info.size
        self.file_id = file_id(info.path, info.version, info.size)
        self.range_file = RangeFile(info.path, info.version, info.size)
        self.reading = _request(info, keep=True)
        self.read_through = _request(info, keep=False)
        self.paging = self.reading.replace(b"/read?", b"/pages?", 1).removesuffix(b"start=") + b"first="
        self.last_page = -2  # page of which a descriptor was asked last
        self.routes: tuple[object, dict[int, tuple[str, ...]]] = (None, {})  # of one table: stripe to owners


def _request(info: FileInfo, *, keep: bool) -> bytes:
    """The start of a read request, up to the range's first byte."""
    return f"GET {read_target(info.path, info.version, info.size, keep=keep)}&start=".encode("ascii")
