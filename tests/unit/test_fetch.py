"""The process that fetches for load jobs, and the words that it and the worker have."""

from __future__ import annotations

import os
import signal
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import CacheError, StaleVersion, UnderStoreError
from kara_cache.mount import Mount, MountTable
from kara_cache.ufs.local import LocalStore
from kara_worker.fetch.local import LocalSource
from kara_worker.fetch.messages import (
    Done,
    Failed,
    decode_answers,
    done_of,
    encode,
    failed_of,
    fetched_of,
    offsets,
)
from kara_worker.fetch.process import FetchProcess
from kara_worker.fetch.source import Fetched, PageSums, Seat, Wanted, sums_of
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores

PAGE = 64 << 10
SEAT = 1 << 20
SUM = st.integers(0, (1 << 64) - 1)


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount("m", f"file://{tmp_path}")


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
def source(mount: Mount, metrics: WorkerMetrics) -> Iterator[FetchProcess]:
    stores = MountedStores(MountTable([mount]), metrics)
    source = FetchProcess(LocalSource(stores, PAGE, seat_bytes=SEAT), metrics, PAGE, seats=2, nice=1)
    yield source
    source.close()
    stores.close()


def write(mount: Mount, name: str, data: bytes) -> Wanted:
    store = LocalStore.from_url(mount.url, {})
    info = store.write(name, data)
    store.close()
    return Wanted(name, info.version, 0, len(data))


def fetch(seat: Seat, mount: Mount, wanted: list[Wanted]) -> tuple[list[Fetched], list[bytes]]:
    views = seat.buffers([one.length for one in wanted])
    told = list(seat.fetch(mount, wanted, lambda index, valid: None))
    return told, [bytes(view) for view in views]


def test_bytes_and_sums_are_those_of_the_files(
    source: FetchProcess, mount: Mount, metrics: WorkerMetrics
) -> None:
    data = [os.urandom(3 * PAGE + 7), b"x", os.urandom(PAGE)]
    seat = source.borrow()
    told, read = fetch(seat, mount, [write(mount, f"f{n}", text) for n, text in enumerate(data)])
    assert read == data
    assert [fetched.index for fetched in told] == [0, 1, 2]
    assert [list(fetched.sums) for fetched in told] == [sums_of(memoryview(text), PAGE) for text in data]
    rows, counted = metrics.store_rows()
    assert counted == {"m": sum(map(len, data))}
    assert rows["m", "read", "ok"][0] == 3
    seat.release(keep=False)
    again = source.borrow()
    assert again is seat
    again.release(keep=False)


def test_errors_are_those_of_the_store_and_the_rest_goes_on(
    source: FetchProcess, mount: Mount, metrics: WorkerMetrics
) -> None:
    good = write(mount, "good", b"abc")
    seat = source.borrow()
    missing, stale = Wanted("missing", "v", 0, 5), Wanted("good", "old", 0, 3)
    (first, second, third), read = fetch(seat, mount, [missing, stale, good])
    assert isinstance(first.error, FileNotFoundError)
    assert isinstance(second.error, StaleVersion)
    assert third.error is None
    assert read[2] == b"abc"
    assert metrics.store_rows()[0]["m", "read", "answer"][0] == 2
    seat.release(keep=False)


def test_memory_that_somebody_still_reads_is_not_used_again(source: FetchProcess, mount: Mount) -> None:
    one, two = write(mount, "one", b"1" * PAGE), write(mount, "two", b"2" * PAGE)
    seat = source.borrow()
    (view,) = seat.buffers([PAGE])
    list(seat.fetch(mount, [one], lambda index, valid: None))
    seat.release(keep=True)
    other = source.borrow()
    assert fetch(other, mount, [two])[1] == [b"2" * PAGE]
    other.release(keep=False)
    assert bytes(view) == b"1" * PAGE


def test_a_process_that_dies_is_replaced(source: FetchProcess, mount: Mount) -> None:
    one = write(mount, "one", b"1")
    seat = source.borrow()
    assert source.pid is not None
    first = source.pid
    os.kill(first, signal.SIGKILL)
    (told,), _ = fetch(seat, mount, [one])
    assert isinstance(told.error, (UnderStoreError, type(None)))  # it may have been faster than its end
    seat.release(keep=False)
    while (seat := source.borrow()) and source.pid == first:  # until its end has been noticed
        fetch(seat, mount, [one])
        seat.release(keep=False)
    (told,), read = fetch(seat, mount, [one])
    assert (told.error, read) == (None, [b"1"])
    seat.release(keep=False)


def test_resting_ends_the_process_and_the_next_order_starts_another(
    source: FetchProcess, mount: Mount
) -> None:
    one = write(mount, "one", b"1")
    seat = source.borrow()
    first = source.pid
    seat.release(keep=False)
    source.rest()
    assert source.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(first or 0, 0)
    seat = source.borrow()
    assert fetch(seat, mount, [one])[1] == [b"1"]
    seat.release(keep=False)


def test_what_cannot_be_told_is_fetched_here(source: FetchProcess, tmp_path: Path) -> None:
    mount = Mount("m", f"file://{tmp_path}", options={"root": object()})
    seat = source.borrow()
    (told,), _ = fetch(seat, mount, [Wanted("a", "v", 0, 1)])
    assert told.error is not None  # there is no such option: but it was tried, in this process
    assert seat.is_usable  # type: ignore[attr-defined]
    seat.release(keep=False)


@given(st.lists(st.tuples(SUM, st.lists(SUM, min_size=1, max_size=5)), max_size=4))
def test_sums_survive_the_way(pages: list[tuple[int, list[int]]]) -> None:
    sums = [PageSums(first, array("Q", rest)) for first, rest in pages]
    (answer,) = decode_answers(encode([done_of(3, 0.5, sums)]))
    assert isinstance(answer, Done)
    assert fetched_of(answer) == Fetched(3, 0.5, sums)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "gone", "/a"), FileNotFoundError),
        (PermissionError(13, "no", "oss://b/a"), PermissionError),
        (StaleVersion("other"), StaleVersion),
        (UnderStoreError("503"), UnderStoreError),
        (ValueError("path"), ValueError),
        (TimeoutError("late"), OSError),
        (RuntimeError("bug"), CacheError),
    ],
)
def test_errors_survive_the_way(error: Exception, kind: type[Exception]) -> None:
    (answer,) = decode_answers(encode([failed_of(1, 0.0, error)]))
    assert isinstance(answer, Failed)
    told = fetched_of(answer).error
    assert type(told) is kind
    assert str(error.args[-1]) in str(told)


@given(st.lists(st.integers(0, 100_000), max_size=10))
def test_offsets_do_not_overlap(lengths: list[int]) -> None:
    begins = offsets(lengths)
    assert all(begin % 4096 == 0 for begin in begins)
    assert all(at + length <= after for at, after, length in zip(begins, begins[1:], lengths, strict=False))
