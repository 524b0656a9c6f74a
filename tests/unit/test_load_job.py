"""Load jobs as values: what is written is read back, and what cannot be meant is refused."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.load_job import (
    LoadJob,
    LoadOptions,
    LoadProgress,
    LoadReceipt,
    LoadState,
    ManifestSum,
    decode_job,
    decode_job_document,
    decode_options,
    encode_job,
    is_job_id,
    job_document,
)

COUNTS = st.integers(0, 2**60)
SECONDS = st.floats(0, 1e9)
NAMES = st.text(min_size=1, max_size=20)

OPTIONS = st.builds(
    LoadOptions,
    replicas=st.integers(1, 64),
    skip_if_cached=st.booleans(),
    metadata_only=st.booleans(),
    verify=st.booleans(),
    partial_listing=st.booleans(),
    bandwidth_bytes_per_s=st.none() | st.integers(1, 2**40),
    requests_per_s=st.none() | st.floats(0.1, 1e6),
    file_filter=st.none() | st.just(r"\.jpg$"),
)
JOBS = st.builds(
    LoadJob,
    id=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    path=NAMES,
    state=st.sampled_from(LoadState),
    options=OPTIONS,
    progress=st.builds(LoadProgress, files=COUNTS, bytes_listed=COUNTS, seconds=SECONDS),
    receipt=st.none()
    | st.builds(
        LoadReceipt,
        files=COUNTS,
        bytes=COUNTS,
        pages_expected=COUNTS,
        pages_present=COUNTS,
        failed=st.dictionaries(NAMES, COUNTS, max_size=3),
        samples=st.dictionaries(NAMES, st.lists(NAMES, max_size=3), max_size=3),
        bytes_fetched=COUNTS,
        store_requests=COUNTS,
        manifest=NAMES,
        content_verified=st.booleans(),
        seconds=SECONDS,
    ),
    submitted_s=SECONDS,
    coordinator=st.text(max_size=32),
    message=st.text(max_size=50),
    finished_s=st.none() | SECONDS,
)


@given(JOBS)
def test_a_job_is_read_back_as_it_was_written(job: LoadJob) -> None:
    assert decode_job(encode_job(job)) == job
    assert decode_job_document(job_document(job)) == job


@given(OPTIONS)
def test_options_travel_as_an_object(options: LoadOptions) -> None:
    document = {name: getattr(options, name) for name in LoadOptions.__dataclass_fields__}
    assert decode_options(document) == options


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"replicas": 0}, "replicas: want 1"),
        ({"replicas": "2"}, "int"),
        ({"replica": 2}, "unknown replica"),
        ({"bandwidth_bytes_per_s": 0}, "bandwidth_bytes_per_s: want 1"),
        ({"requests_per_s": -1.0}, "requests_per_s: want more than 0"),
        ({"file_filter": "("}, "file_filter"),
        ({"file_filter": "a" * 1001}, "at most 1000"),
        (["replicas"], "want an object"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(document: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_options(document)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"id": 1}', b"\xff", b'{"id":"a"}'])
def test_what_is_no_job_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError, match="load job"):
        decode_job(data)


def test_final_states() -> None:
    assert [state.value for state in LoadState if state.final] == ["SUCCEEDED", "FAILED", "STOPPED"]


def test_ids_and_paths_are_told_apart() -> None:
    assert is_job_id("0123456789abcdef" * 2)
    assert not is_job_id("/0123456789abcdef" * 2)
    assert not is_job_id("0123456789ABCDEF" * 2)


@given(st.lists(st.tuples(NAMES, NAMES, COUNTS), max_size=20), st.integers(0, 20))
def test_a_manifest_sum_goes_on_where_it_was_left(files: list[tuple[str, str, int]], at: int) -> None:
    whole = ManifestSum()
    for file in files:
        whole.add(*file)
    first = ManifestSum()
    for file in files[:at]:
        first.add(*file)
    second = ManifestSum(first.value)
    for file in files[at:]:
        second.add(*file)
    assert second.value == whole.value


def test_a_manifest_sum_is_what_it_says() -> None:
    manifest = ManifestSum()
    manifest.add("/data/a", "v1", 7)
    manifest.add("/data/b", "", 0)
    first = blake2b(bytes(32) + b"/data/a\0v1\x007", digest_size=32).digest()
    assert manifest.value == blake2b(first + b"/data/b\0\x000", digest_size=32).digest()


def test_progress_is_a_fraction_of_what_was_listed() -> None:
    assert LoadProgress(bytes_listed=100, bytes=50).fraction == 0.0
    assert LoadProgress(bytes_listed=100, bytes=50, listing_complete=True).fraction == 0.5
    assert LoadProgress(listing_complete=True).fraction == 1.0
