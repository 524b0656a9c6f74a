"""What the client keeps ready for reads of one version of one file."""

from __future__ import annotations

from kara_cache.page import file_id
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import RangeFile, read_target


class CachedFile:
    """Immutable but for hints that threads may overwrite at will (`last_page`, `routes`).

    Quoting a path and hashing an identity for each read of 4 KiB would cost more than to verify it. What a
    batch of many files does not need of each is made when it is asked for.
    """

    __slots__ = (
        "_paging",
        "_read_through",
        "_reading",
        "file_id",
        "info",
        "last_page",
        "path",
        "range_file",
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
        self._reading = self._read_through = self._paging = b""
        self.last_page = -2  # page of which a descriptor was asked last
        self.routes: tuple[object, dict[int, tuple[str, ...]]] = (None, {})  # of one table: stripe to owners

    @property
    def reading(self) -> bytes:
        """The start of a read request, up to the range's first byte."""
        if not self._reading:
            self._reading = _request(self.info, keep=True)
        return self._reading

    @property
    def read_through(self) -> bytes:
        """The same for a worker that should not keep the pages."""
        if not self._read_through:
            self._read_through = _request(self.info, keep=False)
        return self._read_through

    @property
    def paging(self) -> bytes:
        """The start of a request for descriptors, up to the first page."""
        if not self._paging:
            paged = self.reading.replace(b"/read?", b"/pages?", 1)
            self._paging = paged.removesuffix(b"start=") + b"first="
        return self._paging


def _request(info: FileInfo, *, keep: bool) -> bytes:
    return f"GET {read_target(info.path, info.version, info.size, keep=keep)}&start=".encode("ascii")
