"""Where a worker's pages lie on its disk, in files or in segments: to count and to damage them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kara_cache.page import HEADER_BYTES, PageHeader
from kara_cache.page_record import data_at, packed_bytes, unpack
from kara_worker.segments.journal import Journal
from kara_worker.segments.segment import PLACE_BITS, offset_in, size_in

_SUM_BYTES = 8


@dataclass(frozen=True)
class PageOnDisk:
    path: Path
    start: int  # of the header in the file; both layouts have its fields as `kara_cache/page.py` says
    header_sum: int  # where in the file
    data: int
    header: PageHeader

    def flip(self, offset: int, mask: int = 1) -> None:
        """Of a byte of the file."""
        mode = self.path.stat().st_mode
        self.path.chmod(0o600)
        with self.path.open("r+b") as file:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ mask]))
        self.path.chmod(mode)

    def flip_data(self, at: int, mask: int = 1) -> None:
        """Of byte `at` of the data, the last one if there are fewer; from the end if negative."""
        length = self.header.length
        self.flip(self.data + (at + length if at < 0 else min(at, length - 1)), mask)

    def cut(self, size: int) -> None:
        """The file ends after so many bytes of header and data, and with it pages that lie behind."""
        os.truncate(self.path, self.start + size)

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.data)
            return file.read(self.header.length)


def pages_on_disk(page_dir: Path) -> list[PageOnDisk]:
    """Those that are there now; of a running worker, those that it does not change while this looks."""
    return [*_in_files(page_dir / "pages"), *_in_segments(page_dir / "segments")]


def _in_files(folder: Path) -> Iterator[PageOnDisk]:
    for path in sorted(folder.glob("*/[!t]*.*.*")):  # not those that are being written: tmp.*
        with suppress(FileNotFoundError), path.open("rb") as file:
            header = PageHeader.decode(file.read(HEADER_BYTES))
            yield PageOnDisk(path, 0, HEADER_BYTES - _SUM_BYTES, HEADER_BYTES, header)


def _in_segments(folder: Path) -> Iterator[PageOnDisk]:
    with tempfile.TemporaryDirectory() as copy:
        for path in [*folder.glob("index.*"), *folder.glob("journal.*")]:
            with suppress(FileNotFoundError):
                shutil.copy(path, copy)
        journal = Journal(copy)  # which tidies up, therefore in a copy
        journal.close()
    for at in sorted(journal.pages.values()):
        path, start = folder / f"{at >> PLACE_BITS}.seg", offset_in(at)
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            raw = file.read(min(size_in(at), HEADER_BYTES))
            header = unpack(raw)
            packed = packed_bytes(header)
            data = start + data_at(packed, header.length)
            yield PageOnDisk(path, start, start + packed - _SUM_BYTES, data, header)
