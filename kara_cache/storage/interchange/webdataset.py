"""Tars as webdataset writes them: files that follow one another and share a name are one sample.

A row is {"__key__": the name, extension: content, ...}. As in webdataset the extension is all after the
first dot of the file's name; `cls`, `index` and `count` are numbers, `txt`, `text` and `transcript` text,
`json` JSON, and everything else bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kara_cache.storage.interchange.complete_file import complete_file
from kara_cache.storage.interchange.record import Record
from kara_cache.ufs.path import check_path

KEY = "__key__"
_NUMBERS = frozenset({"cls", "cls2", "class", "count", "index", "inx", "id"})
_TEXTS = frozenset({"txt", "text", "transcript"})
_JSON = frozenset({"json", "jsn"})


def read(source: str) -> Iterator[Record]:
    """Raises ValueError naming the tar and the file in it."""
    for tar in _tars(source):
        try:
            with tarfile.open(tar, "r|*") as opened:
                yield from _samples(opened, tar)
        except tarfile.TarError as exc:  # noqa: PERF203 - a file each
            raise ValueError(f"{tar}: {exc}") from exc


def count(source: str) -> int | None:
    """Not known before the end."""
    return None


def write(records: Iterable[Record], target: str) -> int:
    done = 0
    with complete_file(target) as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for done, record in enumerate(records, start=1):
            key, fields = _fields(record, done - 1)
            for extension, value in fields.items():
                content = _encode(value, extension, key)
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return done


def _samples(tar: tarfile.TarFile, where: Path) -> Iterator[Record]:
    row: dict[str, Any] = {}
    for member in tar:
        file = tar.extractfile(member) if member.isfile() else None
        directory, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if file is None or not dot or not stem:  # directories, links, and what has no extension
            continue
        key = f"{directory}{slash}{stem}"
        if row and (row[KEY] != key or extension.lower() in row):
            yield Record(row[KEY], row)
            row = {}
        row.setdefault(KEY, key)
        row[extension.lower()] = _decode(file.read(), extension.lower(), f"{where}, {member.name}")
    if row:
        yield Record(row[KEY], row)


def _decode(content: bytes, extension: str, where: str) -> Any:
    kind = extension.rpartition(".")[2]
    make: Callable[[bytes], Any]
    if kind in _NUMBERS:
        make = int
    elif kind in _TEXTS:
        make = bytes.decode
    elif kind in _JSON:
        make = json.loads
    else:
        return content
    try:
        return make(content)
    except ValueError as exc:
        raise ValueError(f"{where}: {exc}") from exc


def _fields(record: Record, number: int) -> tuple[str, dict[str, Any]]:
    row = record.row
    if not isinstance(row, dict):
        raise TypeError(f"row {number}: a sample is a dict of extensions, got {type(row).__name__}")
    key = str(row.get(KEY) or record.key or f"{number:08}")
    if "." in key.rpartition("/")[2] or not key.rpartition("/")[2]:
        raise ValueError(f"row {number}: key {key!r} has a dot in its name, which would end it in a tar")
    fields = {name: value for name, value in row.items() if name != KEY}
    if not fields:
        raise ValueError(f"row {number}, {key!r}: a sample without fields is not in a tar")
    for name in fields:
        check_path(f"{key}.{name}")
    return key, fields


def _encode(value: Any, extension: str, key: str) -> bytes:
    kind = extension.rpartition(".")[2]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if kind in _JSON:
        return json.dumps(value, ensure_ascii=False).encode()
    if kind in _NUMBERS and isinstance(value, int):
        return b"%d" % value
    if kind in _TEXTS and isinstance(value, str):
        return value.encode()
    raise TypeError(
        f"{key}.{extension}: a file in a tar is bytes, got {type(value).__name__}; only fields named "
        f"{', '.join(sorted(_TEXTS))} may be text, and {', '.join(sorted(_JSON))} anything"
    )


def _tars(source: str) -> list[Path]:
    place = Path(source)
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if ".tar" in path.suffixes or path.suffix == ".tgz")
    if not found:
        raise FileNotFoundError(f"{place}: a directory without *.tar")
    return found
