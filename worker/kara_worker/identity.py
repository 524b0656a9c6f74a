"""Who this worker is, kept in its page directory, and the lock that makes the directory ours alone.

IDENTITY    32 hex digits, the worker's UUID: its place in the table moves with the data, not the address
LOCK        held with flock(2) while a worker runs; its text is that worker's pid, for people
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from pathlib import Path
from types import TracebackType

from kara_cache.errors import ConfigError

IDENTITY_FILE = "IDENTITY"
LOCK_FILE = "LOCK"


class DirectoryLock:
    """Makes `page_dir` (created if missing) this object's until `close()` or the end of the process.

    Open it before anything else in the directory is touched. Children made by fork() share it; the
    kernel lets go when the last of them is gone. On file systems without working flock(2), some NFS
    for one, two hosts may both get it; etcd then tells them apart (see `Registration`).

    Raises:
        ConfigError: the directory is in use by another process, or cannot be used.
    """

    def __init__(self, page_dir: str | os.PathLike[str]) -> None:
        self.page_dir = Path(page_dir)
        path = self.page_dir / LOCK_FILE
        try:
            self.page_dir.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"page directory {self.page_dir} cannot be used: {exc}") from exc
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """Names this directory on this boot of this host. A copy of the directory has another one, a
        process that takes the directory over has the same."""
        status = os.stat(self.page_dir)
        return f"{boot_id()}:{status.st_dev:x}:{status.st_ino:x}"

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(f"page directory {self.page_dir} is in use by pid {pid}") from None
        except OSError as exc:
            raise ConfigError(f"page directory {self.page_dir} cannot be locked: {exc}") from exc
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)


def load_or_create_identity(page_dir: str | os.PathLike[str]) -> str:
    """The 32 hex digits in `page_dir`/IDENTITY, made and synced to disk first if the file is missing.

    Call it while holding the directory's `DirectoryLock`.

    Raises:
        ConfigError: the file holds something else, or cannot be read or written. It is never replaced:
            a new identity would move the worker's place and orphan every page.
    """
    path = Path(page_dir) / IDENTITY_FILE
    try:
        return _checked(path, path.read_bytes())
    except FileNotFoundError:
        pass
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    identity = uuid.uuid4().hex
    try:
        _write_synced(path, identity.encode("ascii") + b"\n")
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc}") from exc
    return identity


def boot_id() -> str:
    """Another one after each boot of the kernel, the same in all its containers; "" where it is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _checked(path: Path, raw: bytes) -> str:
    text = raw.decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise ConfigError(
            f"{path} is damaged: want 32 lower-case hex digits, got {raw[:64]!r}. Restore it, or remove it "
            "and let this worker join as a new one"
        )
    return text


def _write_synced(path: Path, content: bytes) -> None:
    """Whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
