"""Pages go out unread only while somebody has compared them a moment ago."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kara_cache.errors import PageCorrupt
from kara_cache.page import DEFAULT_PAGE_BYTES, PageHeader, PageId
from kara_worker.alluxio.verified_pages import VerifiedPages
from kara_worker.http.output import PageSlice
from kara_worker.pages.page_store import StoredPage

DATA = random.Random(1).randbytes(200_000)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "page"
    path.write_bytes(b"head" + DATA)
    return path


@pytest.fixture
def page(file: Path) -> Iterator[StoredPage]:
    header = PageHeader.of(PageId(b"f" * 16, 3), DATA, page_bytes=DEFAULT_PAGE_BYTES, created_ns=0)
    fd = os.open(file, os.O_RDONLY)
    yield StoredPage(fd, 4, header)
    os.close(fd)


def spoil(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"other bytes")


def sent(item: bytes | PageSlice) -> bytes:
    return item if isinstance(item, bytes) else os.pread(item.page.fd, item.count, item.offset)


def test_a_whole_page_is_compared_and_then_sent_from_the_file(page: StoredPage) -> None:
    item = VerifiedPages(DEFAULT_PAGE_BYTES).at_hand(page, 0, len(DATA))
    assert isinstance(item, PageSlice)
    assert sent(item) == DATA


def test_parts_are_copies_and_always_compared(page: StoredPage, file: Path) -> None:
    pages = VerifiedPages(DEFAULT_PAGE_BYTES)
    assert sent(pages.at_hand(page, 900, 2000)) == DATA[900:2000]
    pages.at_hand(page, 0, len(DATA))
    spoil(file)
    with pytest.raises(PageCorrupt):
        pages.at_hand(page, 900, 2000)
    assert sent(pages.at_hand(page, 100_000, 150_000)) == DATA[100_000:150_000]


def test_trust_in_a_page_ends(page: StoredPage, file: Path) -> None:
    clock = Clock()
    pages = VerifiedPages(DEFAULT_PAGE_BYTES, clock=clock)
    pages.at_hand(page, 0, len(DATA))
    spoil(file)
    clock.now += 31
    with pytest.raises(PageCorrupt):
        pages.at_hand(page, 0, len(DATA))


def test_a_page_that_is_wrong_from_the_start_is_never_sent(page: StoredPage, file: Path) -> None:
    spoil(file)
    with pytest.raises(PageCorrupt):
        VerifiedPages(DEFAULT_PAGE_BYTES).at_hand(page, 0, len(DATA))
