"""ListObjects against a plain-Python model of what S3 promises."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.mount import Mount, MountTable
from kara_cache.ufs.base import FileInfo
from kara_cache.ufs.memory import MemoryStore
from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio.s3_listing import ListRequest, S3Listing
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores

MOUNT = Mount("m", "memory://m")
segments = st.sampled_from(["a", "ab", "b", "b c", "b-", "b.d", "é", "z"])
keys = st.lists(segments, min_size=1, max_size=3).map("/".join)


class Counted(MemoryStore):
    def __init__(self) -> None:
        super().__init__("m")
        self.listings = 0

    def list(self, path: str, *, recursive: bool = False) -> Iterator[FileInfo]:
        self.listings += 1
        return super().list(path, recursive=recursive)


def holding(names: set[str]) -> tuple[S3Listing, Counted]:
    store = Counted()
    for name in names:
        store.write(name, name.encode())
    return S3Listing(MountedStores(MountTable([MOUNT]), WorkerMetrics(), opener=lambda _: store)), store


def no_file_is_a_directory(names: set[str]) -> set[str]:
    return {name for name in names if not any(other.startswith(f"{name}/") for other in names)}


def model(names: set[str], prefix: str, delimiter: str) -> list[str]:
    """Keys and common prefixes, as the reference of ListObjectsV2 has it."""
    found = set()
    for name in names:
        if name.startswith(prefix):
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            found.add(name if end < 0 else name[: end + len(delimiter)])
    return sorted(found)


def pages(listing: S3Listing, size: int, **arguments: str) -> Iterator[list[str]]:
    """As a client goes on: by marker in version 1, by the last key otherwise."""
    after = ""
    while True:
        request = ListRequest.parse({**arguments, "max-keys": str(size), "marker": after})
        page = listing.page(MOUNT, request)
        names = [name for name, _ in page.entries]
        yield names
        if not page.truncated:
            return
        assert len(names) == size
        after = names[-1]


@given(
    st.sets(keys, max_size=25).map(no_file_is_a_directory),
    st.one_of(st.just(""), keys, keys.map(lambda key: key[:2]), keys.map(lambda key: f"{key}/")),
    st.sampled_from(["", "/", "b", " "]),
    st.integers(1, 5),
)
def test_pages_add_up_to_the_model(names: set[str], prefix: str, delimiter: str, size: int) -> None:
    listing, _ = holding(names)
    found = list(itertools.chain(*pages(listing, size, prefix=prefix, delimiter=delimiter)))
    assert found == model(names, prefix, delimiter)


@given(st.sets(keys, max_size=25).map(no_file_is_a_directory), keys)
def test_after_a_key(names: set[str], after: str) -> None:
    listing, _ = holding(names)
    page = listing.page(MOUNT, ListRequest.parse({"list-type": "2", "start-after": after}))
    assert [name for name, _ in page.entries] == [name for name in sorted(names) if name > after]


def test_a_long_listing_asks_the_store_once() -> None:
    names = {f"dir/{number:04}" for number in range(2500)}
    listing, store = holding(names)
    assert [len(page) for page in pages(listing, 1000, prefix="dir/")] == [1000, 1000, 500]
    assert store.listings == 1


def test_a_page_that_is_asked_for_again_is_the_same() -> None:
    listing, _ = holding({str(number) for number in range(10)})
    request = ListRequest.parse({"max-keys": "3", "marker": "3"})
    first, again = listing.page(MOUNT, request), listing.page(MOUNT, request)
    assert first.entries == again.entries
    assert [name for name, _ in first.entries] == ["4", "5", "6"]


@pytest.mark.parametrize(
    "query", [{"max-keys": "-1"}, {"max-keys": "x"}, {"list-type": "2", "continuation-token": "!"}]
)
def test_wrong_arguments(query: dict[str, str]) -> None:
    with pytest.raises(S3Error):
        ListRequest.parse(query)


def test_nothing_of_nothing() -> None:
    listing, _ = holding(set())
    assert listing.page(MOUNT, ListRequest.parse({"prefix": "none/"})).entries == []
    assert listing.page(MOUNT, ListRequest.parse({"max-keys": "0"})).entries == []
