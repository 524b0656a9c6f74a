"""Copies between the cache and local files; a bar on a terminal and a line at the end, both on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kara_cache.cache_client import CacheClient
from kara_cache.cli import screen
from kara_cache.quantity import format_bytes
from kara_cache.ufs.base import FileInfo

LOCAL = "local:"  # in front of an absolute path of this machine: /x alone is a kara path
_CHUNK_BYTES = 8 << 20


def local_path(text: str) -> Path:
    return Path(text.removeprefix(LOCAL)).expanduser()


def copy_out(
    client: CacheClient,
    info: FileInfo,
    start: int,
    stop: int,
    out: BinaryIO,
    bar: screen.Progress | None = None,
) -> None:
    """Raises EOFError where the file has become shorter."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(0, stop - start))))
    while start < stop:
        count = client.read_into(info, start, buffer[: min(len(buffer), stop - start)])
        if not count:
            raise EOFError(f"{info.path} ended at byte {start}, expected {stop}")
        out.write(buffer[:count])
        start += count
        if bar is not None:
            bar.update(count)


def download(client: CacheClient, path: str, target: Path, *, recursive: bool) -> None:
    """A file to `target`, or into it if that is a directory; `recursive`: a directory's content into it."""
    info = client.info(path)
    if not info.is_dir:
        place = target / path.rsplit("/", 1)[-1] if target.is_dir() else target
        places = [(info, place)]
    elif recursive:
        prefix = len(path.rstrip("/")) + 1
        places = [(file, target / file.path[prefix:]) for file in client.list(path, recursive=True)]
    else:
        raise IsADirectoryError(f"{path} is a directory: copy it with -r")
    with _counted(len(places), sum(file.size for file, _ in places), path) as bar:
        for file, place in places:
            _download_file(client, file, place, bar)


def upload(client: CacheClient, source: Path, path: str, *, into: bool, recursive: bool) -> None:
    """The other way round; `into` says that `path` is a directory, also if it is not there yet."""
    if not source.is_dir():
        place = f"{path}/{source.name}" if into or _is_directory(client, path) else path
        places = [(source, place)]
    elif recursive:
        files = sorted(file for file in source.rglob("*") if file.is_file())
        places = [(file, f"{path}/{file.relative_to(source).as_posix()}") for file in files]
    else:
        raise IsADirectoryError(f"{source} is a directory: copy it with -r")
    with _counted(len(places), sum(file.stat().st_size for file, _ in places), str(source)) as bar:
        for file, place in places:
            _upload_file(client, file, place, bar)


def _is_directory(client: CacheClient, path: str) -> bool:
    try:
        return client.info(path).is_dir
    except FileNotFoundError:
        return False


def _download_file(client: CacheClient, file: FileInfo, local: Path, bar: screen.Progress) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    partial = local.with_name(f".{local.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as out:
            copy_out(client, file, 0, file.size, out, bar)
        partial.replace(local)
    finally:
        partial.unlink(missing_ok=True)


def _upload_file(client: CacheClient, local: Path, path: str, bar: screen.Progress) -> None:
    with local.open("rb") as file, client.open_writer(path) as writer:
        while chunk := file.read(_CHUNK_BYTES):
            writer.write(chunk)
            bar.update(len(chunk))
        writer.commit()


@contextlib.contextmanager
def _counted(files: int, size: int, label: str) -> Iterator[screen.Progress]:
    began = time.monotonic()
    with screen.progress(size, label.rsplit("/", 1)[-1]) as bar:
        yield bar
    seconds = max(time.monotonic() - began, 1e-6)
    noun = "file" if files == 1 else "files"
    rate = format_bytes(int(size / seconds))
    print(f"copied {files} {noun}, {format_bytes(size)} in {seconds:.2f} s ({rate}/s)", file=sys.stderr)
