from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_worker.http.body import BodyDecoder


def feed_in_pieces(decoder: BodyDecoder, data: bytes, cuts: list[int]) -> bytes:
    """Feeds `data` cut at the given places, and returns the content."""
    content, at = b"", 0
    for cut in [*sorted(cuts), len(data)]:
        content += b"".join(decoder.feed(data[at:cut])) if not decoder.done else b""
        at = cut
        if decoder.done:
            break
    return content


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(0, 2000), max_size=20))
def test_chunked_content_survives_any_cut(parts: list[bytes], cuts: list[int]) -> None:
    data = chunked(parts)
    decoder = BodyDecoder(length=None)
    content = feed_in_pieces(decoder, data, [cut for cut in cuts if cut < len(data)])
    assert (content, decoder.done) == (b"".join(parts), True)


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_what_follows_a_body_of_known_length_is_kept(body: bytes, following: bytes) -> None:
    decoder = BodyDecoder(length=len(body))
    content = b"".join(decoder.feed(body + following)) if not decoder.done else b""
    assert content == body
    assert decoder.done
    if body:
        assert decoder.rest == following


def test_extensions_and_trailers_are_skipped() -> None:
    decoder = BodyDecoder(length=None)
    data = b"3;name=value\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\nGET"
    assert (b"".join(decoder.feed(data)), decoder.done, decoder.rest) == (b"abc", True, b"GET")


@pytest.mark.parametrize(
    "data",
    [b"zz\r\n", b"-1\r\n", b"\r\n", b"1\r\nab\r\n", b"f" * 20 + b"\r\n", b"1" * 5000],
    ids=["not hex", "negative", "empty", "data beyond the chunk", "too large", "endless line"],
)
def test_wrong_framing_is_an_error(data: bytes) -> None:
    with pytest.raises(FormatError, match="chunked body"):
        BodyDecoder(length=None).feed(data)
