"""Words of a stream that are too many to keep: the same as a list of them, at few requests."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.storage.rows import words as words_module
from kara_cache.storage.rows.paged_words import PagedWords
from kara_cache.storage.rows.stored_bytes import StoredBytes
from kara_cache.storage.rows.words import words
from kara_cache.ufs.memory import MemoryStore

pytestmark = pytest.mark.leaves_running("read threads of the module's stream")
HEAD = b"a header of 23 bytes..."
VALUES = [(number * 2654435761) % (1 << 64) for number in range(5000)]


@dataclass
class Held:
    store: Any


@pytest.fixture(scope="module")
def stream() -> Iterator[StoredBytes]:
    """In segments whose ends cut words in two."""
    store, data = MemoryStore("words"), HEAD + struct.pack(f"<{len(VALUES)}Q", *VALUES)
    for number, at in enumerate(range(0, len(data), 9001)):
        store.write(f"index/{number}.blk", data[at : at + 9001])
    stream = StoredBytes(Held(store), "index")
    yield stream
    stream.close()


@pytest.fixture
def paged(stream: StoredBytes) -> PagedWords:
    return PagedWords(stream, len(HEAD), len(VALUES), "Q")


@given(
    number=st.integers(-len(VALUES), len(VALUES) - 1),
    begin=st.integers(-6000, 6000),
    stop=st.integers(-6000, 6000),
)
def test_it_is_like_a_list(stream: StoredBytes, number: int, begin: int, stop: int) -> None:
    paged = PagedWords(stream, len(HEAD), len(VALUES), "Q")
    assert len(paged) == len(VALUES)
    assert paged[number] == VALUES[number]
    assert paged[begin:stop].tolist() == VALUES[begin:stop]
    assert paged[begin:].tolist() == VALUES[begin:]


@given(wanted=st.lists(st.integers(0, len(VALUES) - 2), max_size=40))
def test_many_at_once(stream: StoredBytes, wanted: list[int]) -> None:
    paged = PagedWords(stream, len(HEAD), len(VALUES), "Q")
    assert paged.take(wanted) == [[VALUES[number] for number in wanted]]
    assert paged.take(wanted, 2) == [
        [VALUES[number] for number in wanted],
        [VALUES[number + 1] for number in wanted],
    ]


def test_what_is_not_there(paged: PagedWords) -> None:
    for number in (len(VALUES), -len(VALUES) - 1):
        with pytest.raises(IndexError, match=f"word {number} of {len(VALUES)}"):
            paged[number]
    with pytest.raises(ValueError, match="no steps"):
        paged[::2]


def test_long_streams_are_paged_and_short_ones_copied(
    stream: StoredBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(words(stream, len(HEAD), len(VALUES)), memoryview)
    monkeypatch.setattr(words_module, "HELD_BYTES", 8 * len(VALUES) - 1)
    assert isinstance(words(stream, len(HEAD), len(VALUES)), PagedWords)
    assert isinstance(words(stream, len(HEAD), len(VALUES) - 1), memoryview)
