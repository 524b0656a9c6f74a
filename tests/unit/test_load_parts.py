"""The pure parts of load jobs: a listing cut up, what came of it added up, another attempt, a rate."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError, UnderStoreError
from kara_cache.load_job import MAX_SAMPLES, LoadOptions, ManifestSum
from kara_cache.stripe import STRIPE_BYTES
from kara_cache.ufs.base import FileInfo
from kara_worker.jobs.batch import Action, Batch, Piece, decode_batch, encode_batch
from kara_worker.jobs.errand import Errand, Retries, batches, errands_of
from kara_worker.jobs.feed import CHUNK_FILES, Chunk, Feed, chunks, selected
from kara_worker.jobs.ledger import (
    Ledger,
    Record,
    Tally,
    decode_record,
    encode_record,
    key_of,
    names,
    new_record,
)
from kara_worker.jobs.local_journal import LocalJournal
from kara_worker.jobs.throttle import Throttle

SIZES = st.lists(st.integers(0, 3 * STRIPE_BYTES), max_size=40)


def files(sizes: list[int]) -> list[FileInfo]:
    return [FileInfo(f"/data/f{number:05d}", size, f"v{number}") for number, size in enumerate(sizes)]


# -- the listing -------------------------------------------------------------------------------------


@given(SIZES)
def test_chunks_are_the_listing(sizes: list[int]) -> None:
    listed = files(sizes)
    assert [info for chunk in chunks(iter(listed)) for info in chunk.files] == listed


def test_a_chunk_is_bounded_by_files_and_by_bytes() -> None:
    small = list(chunks(iter(files([1] * (CHUNK_FILES + 1)))))
    assert [len(chunk.files) for chunk in small] == [CHUNK_FILES, 1]
    large = list(chunks(iter(files([1 << 30, 1, 1 << 31, 1]))))
    assert [len(chunk.files) for chunk in large] == [1, 2, 1]


@given(st.lists(st.text("abc/.", min_size=1, max_size=5), unique=True), st.data())
def test_a_listing_goes_on_behind_the_last_file(paths: list[str], data: st.DataObject) -> None:
    listed = [FileInfo(f"/m/{path}", 1, "v") for path in sorted(paths)]
    at = data.draw(st.integers(0, len(listed)))
    after = listed[at - 1].path if at else ""
    assert list(selected(iter(listed), "/m", None, after)) == listed[at:]


@pytest.mark.parametrize(
    ("file_filter", "chosen"),
    [
        (None, ["/m/d/a.jpg", "/m/d/b.txt", "/m/d/jpg/c"]),
        (r"\.jpg$", ["/m/d/a.jpg"]),
        (r"^jpg/", ["/m/d/jpg/c"]),
        (r"d", []),  # only what is below the path is looked at
    ],
)
def test_a_filter_sees_the_path_below(file_filter: str | None, chosen: list[str]) -> None:
    listed = [FileInfo(path, 1, "v") for path in ("/m/d/a.jpg", "/m/d/b.txt", "/m/d/jpg/c")]
    assert [info.path for info in selected(iter(listed), "/m/d", file_filter, "")] == chosen


def test_a_filter_sees_the_name_of_a_single_file() -> None:
    one = [FileInfo("/m/a.jpg", 1, "v")]
    assert list(selected(iter(one), "/m/a.jpg", r"\.jpg$", "")) == one


def test_a_listing_that_breaks_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kara_worker.jobs.feed._PAUSE_S", 0.001)
    listed = files([1] * (CHUNK_FILES + 5))
    attempts = 0

    def entries() -> Iterator[FileInfo]:
        nonlocal attempts
        attempts += 1
        for number, info in enumerate(listed):
            if attempts == 1 and number == CHUNK_FILES + 2:
                raise UnderStoreError("reset in the middle of a page")
            yield info

    feed = Feed(entries, "/data", None, "")
    got: list[FileInfo] = []
    while not feed.exhausted:
        chunk = feed.take()
        got += chunk.files if chunk is not None else []
    assert got == listed
    assert feed.error is None
    assert (feed.files, feed.bytes, attempts) == (len(listed), len(listed), 2)


def test_a_listing_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kara_worker.jobs.feed._PAUSE_S", 0.001)

    def entries() -> Iterator[FileInfo]:
        raise UnderStoreError("still down")
        yield

    feed = Feed(entries, "/data", None, "")
    while not feed.exhausted:
        assert feed.take() is None
    assert str(feed.error) == "still down"


# -- errands -----------------------------------------------------------------------------------------


@given(SIZES, st.integers(1, 3))
def test_errands_cover_every_byte_once_for_each_copy(sizes: list[int], copies: int) -> None:
    chunk = Chunk(files(sizes), copies=copies)
    firsts = list(errands_of(chunk, whole_files=False))
    assert all(errand.rank == 0 and errand.origin == "" for errand in firsts)
    others = [copy for errand in firsts for copy in errand.copies("w")]
    assert all(errand.rank > 0 and errand.origin == "w" and not errand.copies("x") for errand in others)
    errands = firsts + others
    for rank in range(copies):
        mine = [errand for errand in errands if errand.rank == rank]
        for info in chunk.files:
            pieces = [errand.piece for errand in mine if errand.info is info]
            assert sum(piece.stop - piece.start for piece in pieces) == info.size
            assert [piece.start for piece in pieces] == list(range(0, info.size, STRIPE_BYTES))


@given(SIZES)
def test_batches_hold_all_errands_in_order(sizes: list[int]) -> None:
    errands = list(errands_of(Chunk(files(sizes)), whole_files=False))
    cut = list(batches(errands))
    assert [errand for batch in cut for errand in batch] == errands
    assert all(batch for batch in cut)
    for batch in cut:
        assert len(batch) <= 128
        assert len(batch) == 1 or sum(e.piece.stop - e.piece.start for e in batch) <= 64 << 20


def an_errand() -> Errand:
    (errand,) = errands_of(Chunk(files([10])), whole_files=False)
    return errand


def test_a_piece_is_tried_again_later_and_later_and_not_for_ever() -> None:
    now = 0.0
    retries = Retries(patience_s=20.0, clock=lambda: now)
    errand, waits = an_errand(), []
    while retries.put(errand):
        began = now
        while not retries.due():
            now += 0.25
        waits.append(now - began)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_the_budget_of_retries_grows_with_the_work() -> None:
    retries = Retries(patience_s=20.0, clock=lambda: 0.0)
    assert sum(retries.put(an_errand()) for _ in range(2000)) == 1000
    retries.expect(5000)
    assert sum(retries.put(an_errand()) for _ in range(2000)) == 500


# -- the books ---------------------------------------------------------------------------------------


REASONS = st.sampled_from(["not_found", "forbidden", "store_error"])
FAILURES = st.lists(st.tuples(REASONS, st.integers(0, 9), st.text(min_size=1, max_size=3)), max_size=30)


@given(FAILURES, FAILURES)
def test_tallies_add_up(first: list[tuple[str, int, str]], second: list[tuple[str, int, str]]) -> None:
    both, one, other = Tally(), Tally(), Tally()
    for tally, failures in ((one, first), (other, second), (both, first + second)):
        for failure in failures:
            tally.fail(*failure)
    one.add(other)
    assert one == both
    assert one.missing == one.pages == sum(pages for _, pages, _ in first + second)
    assert all(len(paths) <= MAX_SAMPLES for paths in one.samples.values())


def test_rounds_add_what_was_fetched_and_the_last_one_says_what_is_there() -> None:
    ledger = Ledger()
    ledger.done = Tally(files=2, bytes=20, pages=4, present=3, fetched=3, bytes_fetched=15, requests=3)
    ledger.done.fail("store_error", 1, "/m/x")
    ledger.done.pages -= 1
    ledger.lost.fail("changed", 1, "/m/y")
    second = ledger.next_round(5)
    second.done = Tally(files=2, bytes=20, pages=4, present=4, fetched=1, bytes_fetched=5, requests=1)
    receipt = second.receipt(LoadOptions(verify=True), 1.5)
    assert (receipt.pages_expected, receipt.pages_present, receipt.failed) == (5, 4, {"changed": 1})
    assert receipt.pages_expected == receipt.pages_present + sum(receipt.failed.values())
    assert (receipt.bytes_fetched, receipt.store_requests, receipt.content_verified) == (20, 4, True)
    progress = second.progress([], 1.5)
    assert (progress.files, progress.files_verified, progress.pages_fetched) == (2, 2, 4)
    third = second.next_round(6)
    assert (third.loaded.files, third.earlier.fetched, third.round) == (2, 4, 2)


def test_a_record_is_read_back() -> None:
    record = new_record("/data/图", LoadOptions(replicas=2), "w")
    record.ledger.done.fail("forbidden", 3, "/data/图/a")
    again = decode_record(encode_record(record))
    assert again == record
    assert key_of(record.job.id) == key_of("/data/图")
    assert names(again.job, again.job.id)
    assert names(again.job, "/data/图")
    assert not names(again.job, "/data")
    with pytest.raises(FormatError, match="load job record"):
        decode_record(b"{}")


def test_a_manifest_in_the_books_is_that_of_the_files() -> None:
    ledger, manifest = Ledger(), ManifestSum()
    assert ledger.manifest == manifest.value.hex()


# -- batches on the wire -----------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.text(max_size=9), st.text(max_size=9), st.integers(0, 1 << 50)).map(
            lambda t: Piece(t[0], t[1], t[2], t[2] // 3, t[2])
        ),
        max_size=9,
    )
)
def test_a_batch_is_read_back(pieces: list[Piece]) -> None:
    batch = Batch("0" * 32, Action.LOAD, tuple(pieces), since_ns=7, bandwidth_bytes_per_s=9)
    assert decode_batch(encode_batch(batch)) == batch


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"job":"x","action":"load","pieces":[]}',
        b'{"job":"' + b"0" * 32 + b'","action":"rm","pieces":[]}',
        b'{"job":"' + b"0" * 32 + b'","action":"load","pieces":[["/m/a","v",10,5,3]]}',
        b'{"job":"' + b"0" * 32 + b'","action":"load","pieces":[["/m/a","v",10,0,11]]}',
        b'{"job":"' + b"0" * 32 + b'","action":"load","pieces":[["/m/a","v",-1,0,0]]}',
    ],
)
def test_a_batch_that_cannot_be_meant_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError, match="load batch"):
        decode_batch(body)


# -- a rate ------------------------------------------------------------------------------------------


def test_a_rate_is_kept_whatever_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("kara_worker.jobs.throttle.asyncio.sleep", sleep)

    async def run() -> None:
        throttle = Throttle(100.0, clock=lambda: now)
        taken = 0
        for size in [50, 1, 249, 100] * 3:
            await throttle.take(size)
            assert taken <= 100 * now + 1e-6
            taken += size
        throttle.per_s = None
        before = now
        await throttle.take(1e9)
        assert now == before

    asyncio.run(run())


# -- the journal beside the pages --------------------------------------------------------------------


def test_a_local_journal_outlives_its_process(tmp_path: Path) -> None:
    first = LocalJournal(tmp_path / "loads", "w")
    record = new_record("/data/a", LoadOptions(), "w")
    stored = first.submit(record)
    assert stored.held
    assert first.submit(new_record("/data/a", LoadOptions(), "w")).record.job.id == record.job.id
    record.ledger.after = "/data/a/7"
    saved = first.save(stored, record)
    assert saved is not None

    second = LocalJournal(tmp_path / "loads", "w")
    (left,) = second.active()
    assert (left.held, left.record.ledger.after) == (False, "/data/a/7")
    claim = second.claim(left, left.record)
    assert claim is not None
    assert second.claim(left, left.record) is None
    second.ask_stop(left.record)
    assert second.active()[0].stop
    assert second.find("/data/a") == second.find(record.job.id) is not None
    assert second.find("/data/b") is None


def test_a_damaged_record_is_passed_over(tmp_path: Path) -> None:
    directory = tmp_path / "loads"
    directory.mkdir()
    (directory / "0123456789abcdef.json").write_bytes(b"{")
    assert LocalJournal(directory, "w").all() == []


def test_a_record_names_its_claim() -> None:
    record = new_record("/data/a", LoadOptions(), "w")
    assert Record(record.job, record.ledger, record.claim) == record
    assert new_record("/data/a", LoadOptions(), "w").claim != record.claim
