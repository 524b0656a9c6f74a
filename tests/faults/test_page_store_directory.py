"""Whose directory it is, what is left in it, and what happens when it is wiped or disappears."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_data import FOOTPRINT, PAGE_BYTES, Page, file_of, make_page, read

from kara_cache.errors import ConfigError
from kara_worker.eviction import LeastRecentlyUsed
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.pages.page_directory import PageDirectory


@pytest.fixture
def open_store() -> Iterator[Callable[..., FilePageStore]]:
    opened: list[FilePageStore] = []

    def open_it(*roots: Path, **options: object) -> FilePageStore:
        settings = {"capacity_bytes": 64 << 20, "page_bytes": PAGE_BYTES, "min_free_bytes": 0, **options}
        opened.append(FilePageStore(roots, policy=LeastRecentlyUsed(), **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


Open = Callable[..., FilePageStore]


def put(store: FilePageStore, page: Page) -> bool:
    return store.put(page[0], page[1], group="m")


def _file(root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("years of work")


def _hidden(root: Path) -> None:
    root.mkdir()
    (root / ".bashrc").write_text("x")


def _subdirectory(root: Path) -> None:
    (root / "pages").mkdir(parents=True)


def _not_a_directory(root: Path) -> None:
    root.write_text("x")


def _dangling_link(root: Path) -> None:
    root.symlink_to("nowhere")


def _marker(text: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        root.mkdir()
        (root / "KARA_PAGES").write_text(text)

    return make


def _linked_pages(root: Path) -> None:
    _marker(json.dumps({"format": 1, "page_bytes": PAGE_BYTES}))(root)
    (root.parent / "elsewhere").mkdir()
    (root / "pages").symlink_to(root.parent / "elsewhere")


FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "somebody's file": (_file, "no KARA_PAGES in it but thesis.tex, so it is not ours: name a new or empty"),
    "a hidden file": (_hidden, r"\.bashrc"),
    "a directory": (_subdirectory, "no KARA_PAGES in it but pages"),
    "not a directory": (_not_a_directory, "Not a directory"),
    "a dangling link": (_dangling_link, "No such file"),
    "other page size": (
        _marker('{"format": 1, "page_bytes": 1048576}'),
        "pages of 1048576 bytes, configured 65536: set page_bytes to 1048576 or empty the directory",
    ),
    "newer format": (
        _marker('{"format": 2, "page_bytes": 65536}'),
        "format 2, this version knows 1: run the newer version or empty",
    ),
    "marker not JSON": (_marker("KARA"), "not a marker of ours"),
    "marker of another kind": (_marker("[1]"), "not a marker of ours"),
    "marker without fields": (_marker("{}"), "not a marker of ours"),
    "empty marker": (_marker(""), "not a marker of ours"),
    "pages are a link": (_linked_pages, "pages is not a directory"),
}


def _picture(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


@pytest.mark.parametrize("case", FOREIGN)
def test_a_directory_that_is_not_ours_is_refused_and_untouched(
    case: str, tmp_path: Path, open_store: Open
) -> None:
    make, message = FOREIGN[case]
    root = tmp_path / "cache"
    make(root)
    before = _picture(root)
    with pytest.raises(ConfigError, match=message) as refusal:
        open_store(root)
    assert str(root) in str(refusal.value)
    assert _picture(root) == before


@pytest.mark.parametrize("leftover", [None, "lost+found", "KARA_PAGES.new"])
def test_a_new_or_empty_directory_becomes_ours(
    tmp_path: Path, open_store: Open, leftover: str | None
) -> None:
    root = tmp_path / "deep" / "cache"
    if leftover is not None:
        root.mkdir(parents=True)
        (root / leftover).touch()
    store = open_store(root)
    assert put(store, make_page("/m/a"))
    assert json.loads((root / "KARA_PAGES").read_text()) == {"format": 1, "page_bytes": PAGE_BYTES}
    assert not (root / "KARA_PAGES.new").exists()


def test_nobody_else_may_look_in(tmp_path: Path, open_store: Open) -> None:
    store = open_store(tmp_path / "cache")
    page = make_page("/m/a")
    put(store, page)
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        if path.name != "KARA_PAGES":
            assert path.stat().st_mode & 0o077 == 0, path
    assert file_of(tmp_path / "cache", page[0].page).stat().st_mode & 0o777 == 0o600


def test_options_that_cannot_be_meant(tmp_path: Path, open_store: Open) -> None:
    root = tmp_path / "cache"
    for options, message in [
        ({"capacity_bytes": FOOTPRINT - 1}, "a single page takes 69632"),
        ({"page_bytes": 1000}, "page_bytes: 1000, allowed 65536"),
        ({"low_watermark": 0.96}, "low 0.96 and high 0.95"),
    ]:
        with pytest.raises(ConfigError, match=message):
            open_store(root, **options)
    with pytest.raises(ConfigError, match="at least one, each once, got none"):
        open_store()
    with pytest.raises(ConfigError, match="each once"):
        open_store(root, tmp_path / "x" / ".." / "cache")
    assert not root.exists()


def test_when_one_directory_is_refused_the_others_are_let_go(tmp_path: Path, open_store: Open) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x").touch()
    with pytest.raises(ConfigError, match="bad"):
        open_store(tmp_path / "good", tmp_path / "bad")
    open_store(tmp_path / "good")


def test_what_crashed_writers_left_is_removed_and_nothing_else(tmp_path: Path, open_store: Open) -> None:
    root = tmp_path / "cache"
    store = open_store(root)
    page = make_page("/m/a")
    put(store, page)
    store.close()
    shard = file_of(root, page[0].page).parent
    name = file_of(root, page[0].page).name
    (shard / "tmp.0badc0de.17").write_bytes(b"half a page")
    strangers = [
        "README",
        "a.b.c.d.e",
        f"{name}.orig",
        name.replace(".0.", ".x.", 1),
        f"{'0' * 30}.0.1.aaaaaaaa.1",
    ]
    strangers.append(f"{'0' * 32}.0.10001.aaaaaaaa.1")  # longer than a page
    for stranger in strangers:
        (shard / stranger).write_text("x")
    (root / "worker-id").write_text("ours too")
    store = open_store(root)
    assert [file.pages for file in store.files()] == [1]
    assert store.stats().bytes == FOOTPRINT
    assert sorted(os.listdir(shard)) == sorted([name, *strangers])
    assert (root / "worker-id").read_text() == "ours too"


def test_of_two_files_of_one_page_one_is_kept(tmp_path: Path, open_store: Open) -> None:
    root = tmp_path / "cache"
    store = open_store(root)
    page = make_page("/m/a")
    put(store, page)
    store.close()
    place = file_of(root, page[0].page)
    later = place.with_name(place.name[:-1] + "0")
    shutil.copyfile(place, later)
    store = open_store(root)
    assert read(store.get(page[0].page)) == page[1]
    assert [file.pages for file in store.files()] == [1]
    assert store.stats().bytes == FOOTPRINT
    assert len(list(place.parent.iterdir())) == 1


def test_listing_leaves_alone_what_is_being_written(tmp_path: Path) -> None:
    directory = PageDirectory(tmp_path / "cache", number=0, page_bytes=PAGE_BYTES)
    directory.open()
    temporary = Path(directory.write(5, b"header", memoryview(b"data")))
    temporary.with_name("tmp.0badc0de.0").touch()
    assert directory.names(5) == []
    assert os.listdir(temporary.parent) == [temporary.name]
    directory.close()


def test_three_failures_in_a_row_condemn_a_disk(tmp_path: Path) -> None:
    directory = PageDirectory(tmp_path / "cache", number=0, page_bytes=PAGE_BYTES)
    directory.open()
    broken, full = OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full")
    assert not any(directory.failed(error) for error in [broken, broken, full, full, full])
    directory.worked()
    assert [directory.failed(error) for error in [broken, broken, broken, full]] == [False, False, True, True]
    directory.open()
    assert not directory.failed(broken), "a new beginning"
    directory.close()


def test_nothing_comes_in_before_it_is_known_how_much_is_there(
    tmp_path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "cache")
    pages = [make_page("/m/a", index) for index in range(4)]
    for page in pages[:3]:
        put(store, page)
    store.close()
    may_list, names = threading.Event(), PageDirectory.names

    def slow_names(directory: PageDirectory, shard: int) -> list[str]:
        assert may_list.wait(30)
        return names(directory, shard)

    ticks = iter(range(0, 1 << 40, 2_000_000_000))  # two seconds between two looks at the clock
    with monkeypatch.context() as patch:
        patch.setattr(PageDirectory, "names", slow_names)
        store = open_store(tmp_path / "cache", clock_ns=lambda: next(ticks))
        assert store.stats().loading
        assert not put(store, pages[3])
        assert store.stats().rejections == {"loading": 1}
        may_list.set()
        assert [file.pages for file in store.files()] == [3]
    assert not store.stats().loading
    assert read(store.get(pages[0][0].page)) == pages[0][1]


def test_the_last_reader_closes_the_descriptor(tmp_path: Path, open_store: Open) -> None:
    store = open_store(tmp_path / "cache", open_pages=1)
    pages = [make_page("/m/a", index) for index in range(2)]
    for page in pages:
        put(store, page)
    first, again = store.get(pages[0][0].page), store.peek(pages[0][0].page)
    assert first is again is not None
    descriptor = first.fd
    second = store.get(pages[1][0].page)
    assert store.peek(pages[0][0].page) is None, "one is the limit"
    del first
    assert read(again) == pages[0][1]
    del again
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert read(second) == pages[1][1]


def test_open_pages_take_at_most_half_of_the_descriptors(tmp_path: Path, open_store: Open) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 200 + 2 * max(map(int, os.listdir("/proc/self/fd")))  # other tests may have some open
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        store = open_store(tmp_path / "cache", open_pages=1024)
        pages = [make_page("/m/a", index, length=10) for index in range(limit // 2 + 50)]
        for page in pages:
            put(store, page)
            assert store.get(page[0].page) is not None
        assert sum(store.peek(page[0].page) is not None for page in pages) == limit // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_page_that_comes_back_before_its_file_was_unlinked(tmp_path: Path, open_store: Open) -> None:
    """Evicted in one thread, put by another under the same name, then the first goes on."""
    store = open_store(tmp_path / "cache")
    page = make_page("/m/a")
    put(store, page)
    entry = store._space.take(page[0].page, "capacity")
    assert entry is not None
    assert put(store, page)
    assert store.stats().bytes == 2 * FOOTPRINT, "both until the first is gone"
    store._files.unlink([(page[0].page, entry)])
    assert read(store.get(page[0].page)) == page[1]
    assert store.stats().bytes == FOOTPRINT


def _wipe_pages(root: Path) -> None:
    shutil.rmtree(root / "pages")


def _wipe_contents(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _wipe_all(root: Path) -> None:
    shutil.rmtree(root)


@pytest.mark.parametrize("wipe", [_wipe_pages, _wipe_contents, _wipe_all])
def test_the_directory_is_wiped_while_in_use(
    tmp_path: Path, open_store: Open, wipe: Callable[[Path], None]
) -> None:
    root = tmp_path / "cache"
    store = open_store(root, open_pages=2)
    pages = [make_page("/m/a", index) for index in range(8)]
    for page in pages:
        put(store, page)
    held = store.get(pages[0][0].page)
    wipe(root)
    assert read(held) == pages[0][1], "who reads, reads on"
    assert all(store.get(page[0].page) is None for page in pages[1:])
    for _ in range(2):  # the first may be refused: it finds out
        for page in pages:
            put(store, page)
    assert all(read(store.get(page[0].page)) == page[1] for page in pages)
    assert store.stats().corrupt == {}
    store.close()
    again = open_store(root)
    kept = 7 if wipe is _wipe_pages else 8  # the open one had no reason to be written again
    assert [file.pages for file in again.files()] == [kept]
    with pytest.raises(ConfigError, match="in use"):
        open_store(root)


def test_a_wiped_directory_that_somebody_else_took_is_left_alone(tmp_path: Path, open_store: Open) -> None:
    root = tmp_path / "cache"
    store = open_store(root)
    pages = [make_page("/m/a", index) for index in range(4)]
    put(store, pages[0])
    _wipe_contents(root)
    (root / "thesis.tex").write_text("years of work")
    assert not any(put(store, page) for page in pages[1:])
    assert store.probe() == 0
    assert os.listdir(root) == ["thesis.tex"]
    stats = store.stats()
    assert (stats.pages, stats.bytes) == (0, 0)
    assert stats.rejections == {"disk_error": 1, "full": 2}
    (root / "thesis.tex").unlink()
    assert store.probe() == 1
    assert put(store, pages[0])


def test_a_directory_out_of_use_is_looked_at_now_and_then(tmp_path: Path, open_store: Open) -> None:
    root = tmp_path / "cache"
    store = open_store(root, probe_s=0.01)
    page = make_page("/m/a")
    _wipe_contents(root)
    (root / "thesis.tex").write_text("years of work")
    assert not put(store, page)
    (root / "thesis.tex").unlink()
    deadline = time.monotonic() + 30
    while not put(store, page):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    assert read(store.get(page[0].page)) == page[1]
