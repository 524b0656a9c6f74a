from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.page import MAX_PAGE_BYTES
from kara_cache.stripe import STRIPE_BYTES, Stripe, stripe_key, stripes
from kara_cache.wire import MAX_READ_BYTES

offsets = st.one_of(
    st.integers(0, 10 * STRIPE_BYTES),
    st.builds(lambda n, d: max(0, n * STRIPE_BYTES + d), st.integers(0, 2**20), st.integers(-2, 2)),
)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=[]), max_size=20)


def test_a_stripe_is_whole_pages_and_one_read() -> None:
    assert STRIPE_BYTES % MAX_PAGE_BYTES == 0
    assert STRIPE_BYTES <= MAX_READ_BYTES


def test_cut_at_borders() -> None:
    assert list(stripes(5, 2 * STRIPE_BYTES + 1)) == [
        Stripe(0, 5, STRIPE_BYTES),
        Stripe(1, STRIPE_BYTES, 2 * STRIPE_BYTES),
        Stripe(2, 2 * STRIPE_BYTES, 2 * STRIPE_BYTES + 1),
    ]
    assert list(stripes(0, STRIPE_BYTES)) == [Stripe(0, 0, STRIPE_BYTES)]
    assert list(stripes(7, 7)) == []


@given(offsets, st.integers(0, 5 * STRIPE_BYTES))
def test_the_parts_are_the_range(start: int, length: int) -> None:
    parts = list(stripes(start, start + length))
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert sum(part.stop - part.start for part in parts) == length
    for part in parts:
        assert part.start // STRIPE_BYTES == part.index == (part.stop - 1) // STRIPE_BYTES
    if parts:
        assert (parts[0].start, parts[-1].stop) == (start, start + length)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4)])
def test_no_range(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"start={start} stop={stop}"):
        stripes(start, stop)


def test_key_is_path_nul_number() -> None:
    assert stripe_key("/m/ü", 12) == b"/m/\xc3\xbc\x0012"


@given(texts, st.integers(0, 2**40), texts, st.integers(0, 2**40))
def test_no_two_stripes_share_a_key(path: str, index: int, other: str, number: int) -> None:
    assert (stripe_key(path, index) == stripe_key(other, number)) == ((path, index) == (other, number))
