"""One version of a directory as values: which path has which blob."""

from __future__ import annotations

from dataclasses import dataclass

PathParts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blob:
    """The content of one or more files, named by what it is."""

    md5: str  # lower-case hexadecimal, as in the name
    sha1: str
    size: int  # bytes

    @property
    def name(self) -> str:
        return f"{self.md5}_{self.sha1}"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """`mode` and `mtime_ns` are None where the writer did not say: the published package does not."""

    path: PathParts
    blob: Blob
    mode: int | None = None  # permission bits, 0o777 at most
    mtime_ns: int | None = None  # since the epoch

    @property
    def name(self) -> str:
        return "/".join(self.path)


@dataclass(frozen=True, slots=True)
class ObjectTree:
    """Checked: paths are below the root, each one is there once, none is both file and directory."""

    files: tuple[FileEntry, ...]  # by path
    empty_directories: tuple[PathParts, ...] = ()

    @property
    def blobs(self) -> dict[Blob, list[FileEntry]]:
        """Each content once, with the files that have it."""
        found: dict[Blob, list[FileEntry]] = {}
        for file in self.files:
            found.setdefault(file.blob, []).append(file)
        return found

    @property
    def directories(self) -> set[PathParts]:
        """Every directory below the root."""
        found: set[PathParts] = set()
        for path in (*(file.path[:-1] for file in self.files), *self.empty_directories):
            while path and path not in found:  # what is above a path that was found was found with it
                found.add(path)
                path = path[:-1]
        return found

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.blob.size for file in self.files)
