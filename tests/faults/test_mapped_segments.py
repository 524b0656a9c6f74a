"""Mapped pages of segments: what somebody looks at is not cut, whatever becomes of the segment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_data import FOOTPRINT, PAGE_BYTES, Page, make_page

from kara_cache.same_host.held_page import HeldPage
from kara_cache.same_host.page_views import mapped
from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.segments.page_store import SegmentPageStore
from kara_worker.segments.quarantine import Quarantine

CAPACITY = 64 * FOOTPRINT
SEGMENT = 4 * FOOTPRINT
Open = Callable[[], SegmentPageStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    opened: list[SegmentPageStore] = []

    def open_it() -> SegmentPageStore:
        options: dict[str, Any] = {"min_free_bytes": 0, "segment_bytes": SEGMENT}
        opened.append(
            SegmentPageStore([tmp_path / "cache"], CAPACITY, PAGE_BYTES, LeastRecentlyUsed(), **options)
        )
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def put(store: SegmentPageStore, page: Page) -> None:
    assert store.put(page[0], page[1], group="m")


def passed(store: SegmentPageStore, page: Page) -> HeldPage:
    """As a client has it: through a descriptor that it shares with the worker."""
    stored: Any = store.get(page[0].page)
    _, data = stored.hand_over()
    return HeldPage(os.dup(stored.fd), stored.header, 0.0, data)


@pytest.mark.parametrize("length", [PAGE_BYTES, 1000])
def test_a_removed_segment_is_cut_when_the_last_mapping_of_it_is_gone(open_store: Open, length: int) -> None:
    store, now = open_store(), [1000.0]
    room: Any = store._files._room  # type: ignore[attr-defined]
    room.quarantine = quarantine = Quarantine(60.0, lambda: now[0])
    put(store, make_page("/m/first", length=333))
    page = make_page("/m/page", length=length)
    put(store, page)
    held = passed(store, page)
    view = mapped(held)
    assert view is not None
    assert view == page[1]
    for index in range(100):
        put(store, make_page("/m/flood", index))
    assert len(quarantine) == 1
    room.release(early=True)
    now[0] += 1e9
    room.release()
    part = view[500:600]
    del view
    room.release()
    assert part == page[1][500:600]
    assert len(quarantine) == 1
    assert os.fstat(held.fd).st_size > 0
    del part
    room.release()
    assert len(quarantine) == 0
    assert os.fstat(held.fd).st_size == 0
    assert mapped(held) is None, "what is gone is not damage"


def test_a_restart_cuts_no_segment_that_is_mapped(tmp_path: Path, open_store: Open) -> None:
    """Its segment was open when the process ended, the page had left: what is behind the last page goes."""
    store = open_store()
    page, other = make_page("/m/page"), make_page("/m/other")
    put(store, other)
    put(store, page)
    held = passed(store, page)
    view = mapped(held)
    assert view is not None
    assert store.drop(page[0].page, "free")
    (path,) = (tmp_path / "cache" / "segments").glob("*.seg")
    store.close()
    size = os.fstat(held.fd).st_size
    path.chmod(0o600)  # as a kill would have left it
    open_store().close()
    assert view == page[1]
    assert os.fstat(held.fd).st_size == size
    del view
    path.chmod(0o600)
    again = open_store()
    assert os.fstat(held.fd).st_size == FOOTPRINT
    assert again.verify(other[0].page)
