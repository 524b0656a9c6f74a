"""The last view, kept on disk, so that a job starts while etcd cannot be reached."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec

from kara_cache.membership.base import MembershipView, WorkerInfo

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20


class _Saved(msgspec.Struct, frozen=True):
    format: Literal[1]
    cluster: str
    endpoints: tuple[str, ...]
    revision: int
    workers: tuple[WorkerInfo, ...]


class LastKnownView:
    """One file per cluster, `membership-<cluster>.json`, readable by its owner only.

    Never raises for the disk's sake: a view that cannot be kept or read is logged and does without.
    A file that another user could have written is not believed, for it says where data is read from;
    nor is one that was learnt from an etcd of which we know no endpoint. Processes may share the file.
    """

    def __init__(self, state_dir: str | os.PathLike[str], cluster: str, endpoints: Sequence[str]) -> None:
        self.path = Path(state_dir) / f"membership-{quote(cluster, safe='')}.json"
        self._cluster = cluster
        self._endpoints = tuple(sorted(endpoints))
        self._complained = False

    def load(self) -> MembershipView | None:
        try:
            raw = self._read()
            saved = None if raw is None else msgspec.json.decode(raw, type=_Saved)
        except (OSError, ValueError) as exc:  # msgspec's errors are ValueErrors
            logger.warning("%s: last known workers not used: %s", self.path, exc)
            return None
        if saved is None or not self._concerns_us(saved):
            return None
        return MembershipView(saved.workers, saved.revision, "disk")

    def save(self, view: MembershipView) -> None:
        saved = _Saved(1, self._cluster, self._endpoints, view.revision, view.workers)
        try:
            if not self._holds(saved):
                self._replace(msgspec.json.encode(saved))
        except (OSError, ValueError) as exc:
            if not self._complained:  # a read-only home would say so at every change
                logger.warning("%s: last known workers not kept: %s", self.path, exc)
            self._complained = True

    def _concerns_us(self, saved: _Saved) -> bool:
        return saved.cluster == self._cluster and not set(saved.endpoints).isdisjoint(self._endpoints)

    def _holds(self, saved: _Saved) -> bool:
        """Whether another process wrote the same. A higher revision there would prove nothing: after
        etcd was restored from a backup the higher one is the older."""
        raw = self._read()
        if raw is None:
            return False
        try:
            there = msgspec.json.decode(raw, type=_Saved)
        except msgspec.DecodeError:
            return False
        return msgspec.structs.replace(there, revision=saved.revision) == saved

    def _read(self) -> bytes | None:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise OSError(f"others may write it: owner {status.st_uid}, mode {status.st_mode & 0o777:o}")
            if status.st_size > MAX_FILE_BYTES:
                raise OSError(f"{status.st_size} bytes exceed {MAX_FILE_BYTES}")
            return file.read()

    def _replace(self, content: bytes) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # mode 0600
        try:
            with open(fd, "wb") as file:
                file.write(content)
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
