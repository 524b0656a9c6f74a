"""One directory of pages, normally one SSD: whose it is, what lies in it, and whether its disk still works.

KARA_PAGES      {"format": 1, "page_bytes": n}; made only in a new or empty directory, locked while in use
pages/00 .. ff  page files (`page_file.py`), made when needed
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from kara_cache.errors import ConfigError
from kara_worker.pages.page_file import SHARDS, TEMPORARY, write_whole

MARKER = "KARA_PAGES"
FORMAT = 1
_NEW_MARKER = MARKER + ".new"
_NOT_DATA = {"lost+found", _NEW_MARKER}  # found in a fresh file system, left by a crash of `_claim`
_FAILURES_TO_BAD = 3  # without a success between; precedent: JuiceFS' disk state machine
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_THE_DISK = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG),  # limits of our process
    *(errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENOENT),  # somebody's hands
}


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def is_disk_fault(error: OSError) -> bool:
    return error.errno not in _FULL | _NOT_THE_DISK


class PageDirectory:
    """Thread-safe. `usable` says whether the disk is trusted; whoever sees it fail calls `failed`."""

    def __init__(self, root: str | os.PathLike[str], *, number: int, page_bytes: int) -> None:
        self.root = Path(root)
        self.number = number
        self.unlisted: set[int] = set()  # shards whose files are not in the index yet
        self.usable = False
        self._page_bytes = page_bytes
        self._pages = f"{self.root}/pages"
        self._run = secrets.token_hex(4)
        self._temporaries = itertools.count()
        self._lock_fd = -1
        self._device = -1
        self._failures = 0  # in a row; unguarded: a lost count only delays the verdict
        self.total_bytes = 1  # of the file system

    def open(self) -> None:
        """Makes or checks the directory and takes its lock. Raises ConfigError, with what to do about it."""
        try:
            self._open()
        except ConfigError:
            self.close()
            raise
        except OSError as exc:
            self.close()
            raise ConfigError(f"page directory {self.root}: {exc.strerror or exc}") from exc
        self._failures = 0
        self.usable = True

    def _open(self) -> None:
        self._check_device()
        with suppress(FileExistsError):
            os.makedirs(self.root, mode=0o700)
        self._device = os.stat(self.root).st_dev
        if self.is_gone():
            self._claim()
            self.unlisted = set()
        else:
            self.unlisted = set(range(SHARDS))
        self._lock()
        self._check_marker()
        with suppress(FileExistsError):
            os.mkdir(self._pages, 0o700)
        if not stat.S_ISDIR(os.lstat(self._pages).st_mode):
            raise ConfigError(f"page directory {self.root}: {self._pages} is not a directory")
        self._probe()
        space = os.statvfs(self.root)
        self.total_bytes = max(1, space.f_blocks * space.f_frsize)

    def _probe(self) -> None:
        """Raises OSError where nothing can be written, but not for a disk that is full: somebody else may
        have filled it, pages that are there can be served, and make room when they leave."""
        probe = f"{self._pages}/{TEMPORARY}{self._run}.probe"
        try:
            write_whole(probe, b"", memoryview(b"kara"))
            os.unlink(probe)
        except OSError as exc:
            if not is_full(exc):
                raise

    def _check_device(self) -> None:
        """When it is opened again: not on the disk that shows up where ours is mounted no more."""
        place = self.root
        while not place.exists() and place != place.parent:
            place = place.parent
        if self._device not in (-1, os.stat(place).st_dev):
            raise ConfigError(f"page directory {self.root}: another file system is mounted there now")

    def _claim(self) -> None:
        others = sorted(set(os.listdir(self.root)) - _NOT_DATA)
        if others:
            raise ConfigError(
                f"page directory {self.root}: no {MARKER} in it but {', '.join(others[:3])}"
                f"{', ...' * (len(others) > 3)}, so it is not ours: name a new or empty directory"
            )
        new = self.root / _NEW_MARKER
        with open(new, "w", encoding="ascii") as file:
            file.write(json.dumps({"format": FORMAT, "page_bytes": self._page_bytes}) + "\n")
            file.flush()
            os.fsync(file.fileno())  # an empty marker after a power failure would keep us from starting
        os.rename(new, self.root / MARKER)

    def _lock(self) -> None:
        self.close()
        self._lock_fd = os.open(self.root / MARKER, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"page directory {self.root}: in use by another worker; every worker needs its own"
            ) from None

    def _check_marker(self) -> None:
        path = self.root / MARKER
        try:
            marker = json.loads(path.read_bytes())
            version, page_bytes = int(marker["format"]), int(marker["page_bytes"])
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(f"{path}: not a marker of ours ({exc}): empty the directory") from exc
        if version > FORMAT:
            raise ConfigError(
                f"{path}: format {version}, this version knows {FORMAT}: "
                "run the newer version or empty the directory"
            )
        if page_bytes != self._page_bytes:
            raise ConfigError(
                f"{path}: pages of {page_bytes} bytes, configured {self._page_bytes}: "
                f"set page_bytes to {page_bytes} or empty the directory"
            )

    def close(self) -> None:
        """Gives the lock back; idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def path(self, shard: int, name: str) -> str:
        return f"{self._pages}/{shard:02x}/{name}"

    def names(self, shard: int) -> list[str]:
        """Names of the files of a shard, without what crashed writers left: that is removed."""
        try:
            names = os.listdir(f"{self._pages}/{shard:02x}")
        except FileNotFoundError:
            return []
        ours = f"{TEMPORARY}{self._run}."
        for name in names:
            if name.startswith(TEMPORARY) and not name.startswith(ours):
                with suppress(FileNotFoundError):
                    os.unlink(self.path(shard, name))
        return [name for name in names if not name.startswith(TEMPORARY)]

    def write(self, shard: int, header: bytes, data: memoryview) -> str:
        """A temporary file with the page; `rename` it to its place or unlink it. Raises OSError."""
        path = self.path(shard, f"{TEMPORARY}{self._run}.{next(self._temporaries)}")
        try:
            write_whole(path, header, data)
        except FileNotFoundError:
            self._make_shard(shard)
            write_whole(path, header, data)
        return path

    def _make_shard(self, shard: int) -> None:
        if self.is_gone():  # only `open` may decide whether what is there now is ours
            raise FileNotFoundError(errno.ENOENT, "the page directory is gone", str(self.root))
        for path in (self._pages, f"{self._pages}/{shard:02x}"):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)

    def free_bytes(self) -> int:
        """Of the file system, for us. Raises OSError."""
        space = os.statvfs(self.root)
        return space.f_bavail * space.f_frsize

    def is_gone(self) -> bool:
        """Whether somebody wiped it, or nothing is mounted there any more."""
        return not os.path.exists(self.root / MARKER)  # False, not OSError, from a disk that cannot tell

    def worked(self) -> None:
        self._failures = 0

    def failed(self, error: OSError) -> bool:
        """Counts a failure; True if the directory is unusable now."""
        self._failures += is_disk_fault(error)
        if self._failures >= _FAILURES_TO_BAD or (error.errno == errno.ENOENT and self.is_gone()):
            self.usable = False
        return not self.usable
