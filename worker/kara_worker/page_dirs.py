"""What a directory for pages may be, and whether its disk is large enough. Nothing is created here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from kara_cache.errors import ConfigError
from kara_cache.quantity import format_bytes

Statvfs = Callable[[str], os.statvfs_result]


def check_page_dirs(dirs: Sequence[str]) -> None:
    """At least one, none a directory where other things live, none inside another. Raises ConfigError.

    A worker deletes files in its page directories; the page store's marker file is the second guard.
    """
    if not dirs:
        raise ConfigError(
            "page_dirs: none set; name a directory of its own for each disk (--page-dir /data/kara)"
        )
    home = Path.home().resolve()
    places = [Path(directory).resolve() for directory in dirs]
    for directory, place in zip(dirs, places, strict=True):
        if place == home or place in home.parents:
            raise ConfigError(
                f"page_dirs: {directory!r} is the home directory or above it; name a directory below, "
                "for pages alone"
            )
    for one, other in combinations(places, 2):
        if one == other or one in other.parents or other in one.parents:
            raise ConfigError(f"page_dirs: {str(one)!r} and {str(other)!r} overlap")


def check_capacity(dirs: Sequence[str], capacity_bytes: int, statvfs: Statvfs) -> None:
    """Each directory takes an equal part; all parts on one disk must fit on it. Raises ConfigError."""
    part = capacity_bytes // len(dirs)
    disks: dict[int, list[str]] = {}
    for directory in dirs:
        disks.setdefault(_device(directory), []).append(directory)
    for on_it in disks.values():
        has, wanted = disk_bytes(on_it[:1], statvfs), part * len(on_it)
        if wanted > has:
            raise ConfigError(
                f"capacity_bytes: {format_bytes(wanted)} of pages in {', '.join(on_it)}, "
                f"but that file system has {format_bytes(has)} in all"
            )


def disk_bytes(dirs: Sequence[str], statvfs: Statvfs) -> int:
    """The size of the file systems below these directories, each counted once."""
    devices = {_device(directory): _existing(directory) for directory in dirs}
    sizes = (statvfs(directory) for directory in devices.values())
    return sum(size.f_blocks * size.f_frsize for size in sizes)


def _device(directory: str) -> int:
    return os.stat(_existing(directory)).st_dev


def _existing(directory: str) -> str:
    """The directory, or the nearest one above it that is there already."""
    place = Path(directory)
    while not place.exists():
        place = place.parent
    return str(place)
