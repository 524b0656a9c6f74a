"""Facts and bytes of files in one answer: the codecs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError
from kara_cache.file_answer import (
    MAX_FILES,
    decode_document,
    decode_file,
    decode_paths,
    encode_document,
    encode_paths,
)
from kara_cache.ufs.base import FileInfo

segments = st.text(
    st.characters(codec="utf-8", exclude_characters="/", exclude_categories=("Cc", "Cs")), min_size=1
)
paths = st.lists(segments, min_size=1, max_size=4).map(lambda found: "/" + "/".join(found))


@given(st.lists(paths, max_size=20))
def test_paths_come_back(given: list[str]) -> None:
    assert decode_paths(encode_paths(given)) == given


def test_too_many_paths_and_bad_ones_are_refused() -> None:
    with pytest.raises(FormatError, match=f"at most {MAX_FILES}"):
        decode_paths(b"\n" * MAX_FILES)
    with pytest.raises(FormatError):
        decode_paths(b"/m/\xff")


@given(paths, st.binary(max_size=300), st.text(max_size=20), st.none() | st.floats(0, 1e10))
def test_a_file_comes_back_with_its_bytes_or_without(
    path: str, content: bytes, version: str, mtime: float | None
) -> None:
    info = FileInfo(path, len(content), version, mtime)
    document = encode_document(info)
    assert document.count(b"\n") == 1, "it ends the document"
    assert decode_document(document) == info
    assert decode_file(bytearray(document + content)) == (info, content)
    assert decode_file(bytearray(document)) == (info, None if content else b"")


def test_a_directory_has_no_bytes() -> None:
    directory = FileInfo("/m/d", 0, "", is_dir=True)
    assert decode_file(bytearray(encode_document(directory))) == (directory, None)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no json\n",
        b"{}\n",
        encode_document(FileInfo("/m/a", 3, "v")) + b"ab",
        encode_document(FileInfo("/m/a", 3, "v")) + b"abcd",
        encode_document(FileInfo("/m/d", 0, "", is_dir=True)) + b"a",
    ],
)
def test_what_is_no_answer_is_refused(payload: bytes) -> None:
    with pytest.raises(FormatError):
        decode_file(bytearray(payload))
