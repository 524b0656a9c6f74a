"""Where a keyed database lies: a directory with LMDB's two files, or one of LMDB's single files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kara_cache.errors import FormatError

_MAGIC = (0xBEEFC0DE).to_bytes(4, "little")  # mdb.c MDB_MAGIC, in both meta pages, behind a page header
_HEAD_BYTES = 64
_OURS = frozenset({"data.mdb", "lock.mdb", "kara-writer.lock", "data.mdb.prune"})


@dataclass(frozen=True, slots=True)
class DatabaseFiles:
    """`path` is what LMDB opens; with `single` a file `path` and its `path-lock`, else a directory."""

    path: Path
    single: bool = False

    @property
    def data(self) -> Path:
        return self.path if self.single else self.path / "data.mdb"

    @property
    def lock(self) -> Path:
        return self.path.with_name(self.path.name + "-lock") if self.single else self.path / "lock.mdb"

    @property
    def writer_lock(self) -> Path:
        if self.single:
            return self.path.with_name(self.path.name + "-kara-writer.lock")
        return self.path / "kara-writer.lock"

    @property
    def pruned(self) -> Path:
        """What `prune` writes before it takes the place of `data`."""
        return self.data.with_name(self.data.name + ".prune")

    def free_bytes(self) -> int:
        """Of the disk, for us."""
        disk = os.statvfs(self.data.parent)
        return disk.f_bavail * disk.f_frsize


def existing(path: str | os.PathLike[str]) -> DatabaseFiles:
    """Raises FileNotFoundError where no database is, FormatError where something else is."""
    place = Path(path).absolute()
    files = DatabaseFiles(place, single=place.is_file())
    if not place.exists():
        raise FileNotFoundError(f"{place}: there is no database; mode='new' makes one")
    if not files.data.is_file():
        raise FileNotFoundError(f"{place}: a directory without data.mdb, so no database")
    _check_format(files)
    return files


def new(path: str | os.PathLike[str]) -> DatabaseFiles:
    """An empty directory for a database, made with its parents.

    Raises FileExistsError where a database or anything else is: nothing is ever replaced.
    """
    place = Path(path).absolute()
    if place.is_dir():
        found = sorted(entry.name for entry in place.iterdir())
        if "data.mdb" in found:
            raise FileExistsError(f"{place}: already a database; mode='write' continues it")
        if foreign := [name for name in found if name not in _OURS]:
            raise FileExistsError(f"{place}: a directory of something else, it has {foreign[0]!r}")
    elif place.exists():
        raise FileExistsError(f"{place}: a file; a new database is a directory")
    place.mkdir(parents=True, exist_ok=True)
    return DatabaseFiles(place)


def existing_or_new(path: str | os.PathLike[str]) -> DatabaseFiles:
    place = Path(path).absolute()
    if place.is_file() or (place / "data.mdb").is_file():
        return existing(place)
    return new(place)


def _check_format(files: DatabaseFiles) -> None:
    with files.data.open("rb") as data:
        head = data.read(_HEAD_BYTES)
    # LMDB leaves an empty file behind where it was killed before its first page: it starts over itself.
    if head and _MAGIC not in head:
        raise FormatError(f"{files.data}: not an LMDB database, it begins with {head[:8]!r}")
