"""The segments of a stored stream: `0.blk`, `1.blk`, ... of one directory, each at one version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Protocol

from kara_cache.errors import FormatError, KaraError
from kara_cache.ufs.base import FileInfo

SUFFIX = ".blk"


class Listed(Protocol):
    """What finding segments needs of a store, or of the cache in front of it."""

    def info(self, path: str) -> FileInfo: ...

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]: ...


def find_segments(store: Listed, directory: str) -> tuple[FileInfo, ...]:
    """Sizes and versions of `N.blk` from 0 on, up to the first that is missing; () where there is none.

    One request where the store lists directories, else one for each segment and one more: a web server
    without index pages, or credentials that may read and not list, are no reason to fail. Other files
    in the directory are left alone.
    """
    try:
        listed = list(store.list(directory))
    except (OSError, KaraError):
        listed = []
    return _numbered(listed) or tuple(_probed(store, directory))


def _numbered(entries: Iterable[FileInfo]) -> tuple[FileInfo, ...]:
    by_name = {entry.path.rpartition("/")[2]: entry for entry in entries if not entry.is_dir}
    found: list[FileInfo] = []
    for number in count():
        entry = by_name.get(f"{number}{SUFFIX}")
        if entry is None:
            return tuple(found)
        found.append(entry)
    raise AssertionError("count() does not end")


def _probed(store: Listed, directory: str) -> Iterator[FileInfo]:
    for number in count():
        try:
            yield store.info(f"{directory}/{number}{SUFFIX}")
        except (FileNotFoundError, NotADirectoryError):  # noqa: PERF203 - a request each
            return


def ends_of(segments: Sequence[FileInfo]) -> list[int]:
    """Where each segment ends in the stream."""
    ends, at = [], 0
    for segment in segments:
        if segment.is_dir:
            raise FormatError(f"{segment.path}: a directory in the place of a segment")
        at += segment.size
        ends.append(at)
    return ends
