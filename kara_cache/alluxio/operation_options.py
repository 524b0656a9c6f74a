"""Options of `AlluxioClient.rm` and `cp`, as alluxiofs 1.0.17 has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RMOption:
    """What to delete. Only the fields below that say so change anything here."""

    recursive: bool = False  # whole directories
    recursiveAlias: bool = False  # the same
    sync_parent_next_time: bool = False  # without effect: listings are the store's
    remove_unchecked_option: bool = False  # without effect: there is nothing to check against
    remove_alluxio_only: bool = True  # drop the cached pages and leave the store alone
    delete_mount_point: bool = False  # refused: mounts are the operator's


@dataclass(frozen=True)
class CPOption:
    """How to copy. Only `recursive` changes anything here."""

    recursive: bool = True
    recursiveAlias: bool = False
    forced: bool = False  # without effect: a file that exists is replaced as a whole
    thread: int | None = None
    buffer_size: str | None = None
    preserve: bool = True
