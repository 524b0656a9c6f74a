"""The laws of `kara_worker/page_store.py`, over every kind of store in `page_stores.py`."""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_data import FOOTPRINT, NOW_NS, PAGE_BYTES, Page, make_page, read
from page_stores import PAGE_STORES, Opener

from kara_cache.errors import ConfigError
from kara_cache.page import PageId
from kara_worker.eviction import LeastRecentlyUsed, make_policy
from kara_worker.pages.page_store import PageStore

Open = Callable[..., PageStore]
SECOND_NS = 1_000_000_000


@pytest.fixture(params=sorted(PAGE_STORES))
def opener(request: pytest.FixtureRequest) -> Opener:
    return PAGE_STORES[request.param]


@pytest.fixture
def open_store(opener: Opener, tmp_path: Path) -> Iterator[Open]:
    """Opens stores on one root; all are closed in the end."""
    opened: list[PageStore] = []

    def open_it(**options: Any) -> PageStore:
        opened.append(opener(tmp_path / "pages", **options))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def put(store: PageStore, page: Page, *, group: str = "") -> bool:
    return store.put(page[0], page[1], group=group)


def identity(page: Page) -> PageId:
    return page[0].page


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, PAGE_BYTES - 1, PAGE_BYTES])
def test_what_was_put_is_found_to_the_byte(open_store: Open, length: int) -> None:
    store = open_store()
    page = make_page("/m/a", 3, length=length)
    assert put(store, page)
    stored = store.get(identity(page))
    assert read(stored) == page[1]
    assert stored is not None
    assert stored.header == page[0]
    assert store.contains(identity(page))
    assert store.verify(identity(page))


def test_a_page_that_was_never_put_is_not_there(open_store: Open) -> None:
    store = open_store()
    put(store, make_page("/m/a", 0))
    for missing in (make_page("/m/a", 1), make_page("/m/a", 0, version="v2"), make_page("/m/b", 0)):
        page = identity(missing)
        assert store.get(page) is None
        assert store.peek(page) is None
        assert not store.contains(page)
        assert not store.verify(page)
        assert not store.drop(page, "free")
    stats = store.stats()
    assert (stats.pages, stats.corrupt, stats.evictions, stats.disk_errors) == (1, {}, {}, 0)


def test_peek_finds_open_pages_only_and_calls_no_system_function(open_store: Open) -> None:
    store = open_store()
    page = make_page("/m/a")
    put(store, page)
    assert store.peek(identity(page)) is None
    opened = store.get(identity(page))
    calls: list[str] = []

    def watch(frame: object, event: str, argument: object) -> None:
        if event == "c_call" and getattr(argument, "__module__", "") in ("posix", "io", "mmap", "fcntl"):
            calls.append(repr(argument))

    sys.setprofile(watch)
    try:
        seen = store.peek(identity(page))
        store.peek(PageId(b"\0" * 16, 1))
    finally:
        sys.setprofile(None)
    assert seen is opened
    assert calls == []


def test_a_page_is_stored_once(open_store: Open) -> None:
    store = open_store()
    page = make_page("/m/a")
    assert put(store, page)
    assert put(store, page)
    stats = store.stats()
    assert (stats.pages, stats.rejections) == (1, {})


def test_a_dropped_page_is_gone_and_counted_by_reason(open_store: Open) -> None:
    store = open_store()
    pages = [make_page("/m/a", index) for index in range(3)]
    for page in pages:
        put(store, page)
    assert store.drop(identity(pages[0]), "ttl")
    assert not store.drop(identity(pages[0]), "ttl")
    assert store.drop(identity(pages[1]), "free")
    assert store.get(identity(pages[0])) is None
    assert read(store.get(identity(pages[2]))) == pages[2][1]
    stats = store.stats()
    assert (stats.pages, stats.evictions) == (1, {"ttl": 1, "free": 1})
    assert put(store, pages[0]), "it may come back"
    assert read(store.get(identity(pages[0]))) == pages[0][1]


@pytest.mark.parametrize("leave", ["drop", "evict"])
def test_a_reader_keeps_its_page_whatever_happens_to_it(open_store: Open, leave: str) -> None:
    store = open_store(capacity_bytes=4 * FOOTPRINT)
    page = make_page("/m/read")
    put(store, page)
    stored = store.get(identity(page))
    assert stored is not None
    if leave == "drop":
        assert store.drop(identity(page), "free")
    for index in range(12):
        put(store, make_page("/m/flood", index))
    assert not store.contains(identity(page))
    assert store.peek(identity(page)) is None
    assert read(stored) == page[1]
    store.close()
    assert read(stored) == page[1]


def test_capacity_is_never_exceeded(open_store: Open) -> None:
    store = open_store(capacity_bytes=10 * FOOTPRINT)
    for index in range(60):
        put(store, make_page("/m/a", index, length=1 + (index * 7919) % PAGE_BYTES))
        stats = store.stats()
        assert 0 < stats.bytes <= stats.capacity_bytes
        assert stats.pages == index + 1 - sum(stats.evictions.values()) - sum(stats.rejections.values())
    assert store.stats().evictions["capacity"] > 0


def test_least_recently_used_pages_go_first(open_store: Open) -> None:
    store = open_store(capacity_bytes=10 * FOOTPRINT)
    kept = make_page("/m/kept")
    put(store, kept)
    for index in range(40):
        assert store.get(identity(kept)) is not None
        put(store, make_page("/m/flood", index))
    assert store.contains(identity(kept))
    assert not store.contains(identity(make_page("/m/flood", 0)))


def test_a_policy_that_refuses_keeps_what_is_there(open_store: Open) -> None:
    class Closed(LeastRecentlyUsed):
        def admit(self, page: PageId, size: int, group: str) -> bool:
            return False

        def expendable(self) -> bool:
            return False

    store = open_store(capacity_bytes=5 * FOOTPRINT, policy=Closed())
    pages = [make_page("/m/a", index) for index in range(9)]
    assert [put(store, page) for page in pages] == [True] * 5 + [False] * 4
    stats = store.stats()
    assert (stats.pages, stats.rejections, stats.evictions) == (5, {"policy": 4}, {})
    assert store.evict_to_low_watermark() == 0, "nor does it give away what nobody was let in for"
    assert all(store.contains(identity(page)) for page in pages[:5])


def test_room_is_made_ahead_of_need(open_store: Open) -> None:
    store = open_store(capacity_bytes=20 * FOOTPRINT)
    for index in range(20):
        put(store, make_page("/m/a", index))
    store.evict_to_low_watermark()
    assert store.stats().bytes <= 0.9 * store.stats().capacity_bytes
    assert store.evict_to_low_watermark() == 0


def test_room_is_made_in_the_background(open_store: Open) -> None:
    store = open_store(capacity_bytes=100 * FOOTPRINT)
    for index in range(96):
        assert put(store, make_page("/m/a", index))
    deadline = time.monotonic() + 10
    while store.stats().bytes > 90 * FOOTPRINT:
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    assert store.stats().evictions == {"capacity": 6}


def test_data_that_does_not_fit_its_header_is_a_mistake_of_the_caller(open_store: Open) -> None:
    store = open_store()
    header, data = make_page("/m/a")
    with pytest.raises(ValueError, match="65535 bytes of 65536"):
        store.put(header, data[:-1])
    other, other_data = make_page("/m/a", page_bytes=2 * PAGE_BYTES)
    with pytest.raises(ValueError, match="pages of 65536"):
        store.put(other, other_data)


def test_pages_stay_for_the_next_process(open_store: Open) -> None:
    store = open_store()
    pages = [make_page(f"/m/{n // 10}", n % 10, length=1000 + n) for n in range(200)]
    for page in pages:
        assert put(store, page, group="m")
    before = store.stats()
    store.close()
    store = open_store()
    for page in pages:
        assert read(store.get(identity(page))) == page[1]
    after = store.stats()
    assert (after.pages, after.bytes) == (before.pages, before.bytes)
    assert not store.contains(identity(make_page("/m/0", 77)))


def test_it_serves_while_it_still_looks_around(open_store: Open) -> None:
    store = open_store()
    pages = [make_page("/m/a", index, length=100) for index in range(300)]
    for page in pages:
        put(store, page)
    store.close()
    for wanted in random.Random(1).sample(pages, 5):
        store = open_store()
        assert read(store.get(identity(wanted))) == wanted[1]
        store.close()


def test_pages_of_other_processes_can_be_dropped_and_put_again_at_once(open_store: Open) -> None:
    store = open_store()
    pages = [make_page("/m/a", index) for index in range(40)]
    for page in pages:
        put(store, page)
    store.close()
    store = open_store()
    assert store.drop(identity(pages[5]), "free")
    assert put(store, pages[5])
    assert put(store, pages[6])
    assert store.drop(identity(pages[7]), "free")
    assert [f.pages for f in store.files()] == [39]
    assert store.stats().pages == 39


def test_files_are_listed_with_what_is_here_of_them(open_store: Open) -> None:
    paths = ["/m/plain", "/m/with space", "/m/数据/é", "/m/" + "long" * 300, "/n/other"]
    store = open_store()
    for number, path in enumerate(paths):
        for index in range(number + 1):
            put(store, make_page(path, index * 1000))
    put(store, make_page("/m/plain", 0, version="v2"))
    for restart in (False, True):
        if restart:
            store.close()
            store = open_store()
        found = {(f.path, f.pages): f for f in store.files()}
        expected = {(path, number + 1) for number, path in enumerate(paths)}
        assert set(found) == expected
        assert sum(f.pages for f in store.files()) == store.stats().pages == 16
        assert sum(f.bytes for f in store.files()) == store.stats().bytes


@pytest.mark.parametrize("restart", [False, True])
def test_freeing_a_path_drops_all_its_versions_and_nothing_else(open_store: Open, restart: bool) -> None:
    store = open_store()
    for path in ("/m/d/a", "/m/d/b", "/m/d/sub/c", "/m/dd", "/m/d", "/n/d/a"):
        for index in (0, 1, 1000):
            for version in ("v1", "v2"):
                put(store, make_page(path, index, version=version))
    if restart:
        store.close()
        store = open_store()
    assert store.free("/m/d/a", recursive=False) == (6, 6 * FOOTPRINT)
    assert store.free("/m/d/a", recursive=False) == (0, 0)
    assert store.free("/m/d/b", recursive=True) == (6, 6 * FOOTPRINT)
    assert store.free("/m/absent", recursive=True) == (0, 0)
    assert store.free("/", recursive=False) == (0, 0)
    assert store.free("/m/d", recursive=True)[0] == 12, "the file of that name and what is below"
    assert {f.path for f in store.files()} == {"/m/dd", "/n/d/a"}
    assert store.stats().evictions == {"free": 24}
    assert store.free("/", recursive=True, reason="lost")[0] == 12
    assert store.stats().pages == store.stats().bytes == 0


@pytest.mark.parametrize("restart", [False, True])
def test_pages_older_than_the_ttl_of_their_mount_expire(open_store: Open, restart: bool) -> None:
    store = open_store()
    ages_s = [0, 1, 59, 60, 61, 200, 86_400]
    for mount in ("short", "long", "never"):
        for index, age_s in enumerate(ages_s):
            page = make_page(f"/{mount}/f", index, created_ns=NOW_NS - age_s * SECOND_NS)
            put(store, page, group=mount)
    if restart:
        store.close()
        store = open_store()
    assert store.expire({}, NOW_NS) == 0
    assert store.expire({"short": 60.0, "long": 100.0, "absent": 0.0}, NOW_NS) == 3 + 2
    left = {(f.path, f.pages) for f in store.files()}
    assert left == {("/short/f", 4), ("/long/f", 5), ("/never/f", 7)}
    assert store.expire({"short": 60.0}, NOW_NS) == 0
    assert store.expire({"short": 60.0}, NOW_NS + 2 * SECOND_NS) == 2
    assert store.stats().evictions == {"ttl": 7}


def test_many_threads_keep_exact_books(open_store: Open) -> None:
    """Every thread puts, reads, drops and frees the same pages; then the books equal a fresh count."""
    store = open_store(capacity_bytes=40 * FOOTPRINT)
    pages = [make_page(f"/m/{n % 6}", n, length=1 + (n * 7919) % PAGE_BYTES) for n in range(100)]
    wrong: list[str] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(150):
            page = source.choice(pages)
            verb = source.random()
            if verb < 0.5:
                put(store, page, group="m")
            elif verb < 0.85:
                stored = store.get(identity(page))
                if stored is not None and read(stored) != page[1]:
                    wrong.append(str(identity(page)))
            elif verb < 0.95:
                store.drop(identity(page), "free")
            elif verb < 0.97:
                store.free(f"/m/{source.randrange(6)}", recursive=False)
            else:
                store.evict_to_low_watermark()
            if (stats := store.stats()).bytes > stats.capacity_bytes:
                wrong.append(f"{stats.bytes} bytes")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
    assert (stats := store.stats()).corrupt == {}
    assert "lost" not in stats.evictions
    store.close()
    stats = store.stats()
    reopened = open_store(capacity_bytes=80 * FOOTPRINT)  # so that it evicts nothing by itself
    assert sum(f.pages for f in reopened.files()) == stats.pages
    assert sum(f.bytes for f in reopened.files()) == stats.bytes


def test_a_root_belongs_to_one_store_at_a_time(open_store: Open) -> None:
    store = open_store()
    with pytest.raises(ConfigError, match="in use"):
        open_store()
    store.close()
    open_store()


def test_closing_twice_is_fine_and_a_closed_store_has_nothing(open_store: Open) -> None:
    store = open_store()
    page = make_page("/m/a")
    put(store, page)
    store.get(identity(page))
    store.close()
    store.close()
    assert store.peek(identity(page)) is None
    assert store.get(identity(page)) is None
    assert not put(store, make_page("/m/b"))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "get", "drop", "free", "free below", "verify", "restart"]),
        st.integers(0, 5),
        st.sampled_from([0, 1, 2, 700]),
    ),
    max_size=25,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_behaves_as_a_dictionary(opener: Opener, steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = opener(Path(root) / "pages")
        model: dict[PageId, tuple[str, bytes]] = {}
        try:
            for verb, file, index in steps:
                path = f"/m/{file % 2}/{file}"
                page = make_page(path, index, length=file * 3000 + 1)
                if verb == "put":
                    assert put(store, page)
                    model[identity(page)] = path, bytes(page[1])
                elif verb == "drop":
                    assert store.drop(identity(page), "free") == (model.pop(identity(page), None) is not None)
                elif verb == "verify":
                    assert store.verify(identity(page)) == (identity(page) in model)
                elif verb == "restart":
                    store.close()
                    store = opener(Path(root) / "pages")
                elif verb.startswith("free"):
                    prefix = path if verb == "free" else f"/m/{file % 2}"
                    gone = [p for p, (name, _) in model.items() if f"{name}/".startswith(f"{prefix}/")]
                    assert store.free(prefix, recursive=verb != "free")[0] == len(gone)
                    model = {p: kept for p, kept in model.items() if p not in gone}
                stored = store.get(identity(page))
                assert (stored and read(stored)) == (model.get(identity(page), (None, None))[1])
            assert {(f.path, f.pages) for f in store.files()} == {
                (name, sum(other == name for other, _ in model.values())) for name, _ in model.values()
            }
        finally:
            store.close()


def test_the_status_line_is_short(open_store: Open) -> None:
    with closing(open_store()) as store:
        put(store, make_page("/m/a"))
        assert "1 pages" in repr(store)
        assert len(repr(store)) < 100


def test_the_collector_passes_over_pages(open_store: Open) -> None:
    """Or it would stop the worker for a second where there are a million of them."""
    with closing(open_store(policy=make_policy("s3fifo", guard=True))) as store:
        gc.collect()
        before = len(gc.get_objects())
        for number in range(300):
            assert put(store, make_page(f"/m/{number}", length=100))
        gc.collect()
        assert len(gc.get_objects()) - before < 200
