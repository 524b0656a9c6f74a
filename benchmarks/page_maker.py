"""Lays small pages out as a store of segments leaves them: `python -m benchmarks.page_maker DIRECTORY COUNT`.

Not through a store, which would take ten times as long and measure itself. Each page is the only one of a
file of its own, so that there are as many files as pages.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kara_cache.page import DEFAULT_PAGE_BYTES, PageHeader, PageId, file_id
from kara_cache.page_record import pack, record_bytes
from kara_worker.pages.left_segments import FOLDER, SUFFIX
from kara_worker.pages.page_directory import PageDirectory
from kara_worker.pages.page_file import CREATED_STEP_NS, group_token
from kara_worker.pages.page_index import FileRecord
from kara_worker.segments.journal import Journal, Placed
from kara_worker.segments.segment import SEALED_MODE, place_of

PAGE_STORE = "segments"
PAGE_BYTES = 4096  # of data in each
FOOTPRINT_BYTES = 4352  # at most: packed header, data
_SEGMENT_BYTES = 32 << 20


def path_of(number: int) -> str:
    return f"/near/pages/{number}"


def main(directory: str, count: int) -> None:
    root = Path(directory)
    root.parent.mkdir(parents=True, exist_ok=True)
    home = PageDirectory(root, number=0, page_bytes=DEFAULT_PAGE_BYTES)
    home.open()
    folder = root / FOLDER
    folder.mkdir()
    journal = Journal(str(folder))
    journal.begin_index()
    made_ns = time.time_ns()
    step = made_ns // CREATED_STEP_NS
    journal.write_index(_pages(folder, count, made_ns), _files(count), _ages(folder, step))
    journal.close()
    home.close()


def _pages(folder: Path, count: int, made_ns: int) -> Iterator[Placed]:
    """Writes a segment whenever one is full, and the last."""
    segment, number = bytearray(), 0
    for which in range(count):
        data = which.to_bytes(8, "little") * (PAGE_BYTES // 8)
        path = path_of(which)
        page = PageId(file_id(path, "v1", PAGE_BYTES), 0)
        header = PageHeader.of(page, data, page_bytes=DEFAULT_PAGE_BYTES, created_ns=made_ns, path=path)
        raw = pack(header)
        size = record_bytes(len(raw), PAGE_BYTES)
        if len(segment) + size > _SEGMENT_BYTES:
            _write(folder, number, segment)
            segment, number = bytearray(), number + 1
        yield page, number, place_of(len(segment), size)
        segment += (raw + data).ljust(size, b"\0")
    _write(folder, number, segment)


def _write(folder: Path, number: int, segment: bytearray) -> None:
    path = folder / f"{number}{SUFFIX}"
    path.write_bytes(segment)
    os.chmod(path, SEALED_MODE)


def _files(count: int) -> Iterator[FileRecord]:
    group = group_token("near")
    for which in range(count):
        record = FileRecord(file_id(path_of(which), "v1", PAGE_BYTES))
        record.path, record.group = path_of(which), group
        yield record


def _ages(folder: Path, step: int) -> Iterator[tuple[int, int, int]]:
    for path in folder.glob(f"*{SUFFIX}"):
        yield int(path.stem), step, step


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
