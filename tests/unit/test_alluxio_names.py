"""What arrives when a client pastes a path into a URL and lets `requests` quote it."""

from __future__ import annotations

from hashlib import sha256
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import assume, given
from hypothesis import strategies as st

from kara_cache.mount import Mount, MountTable
from kara_worker.alluxio.raw_query import form_values, spellings, split_path, split_two_paths
from kara_worker.alluxio.ufs_names import UfsNames, UnknownMount, quoted_path

MOUNTS = MountTable(
    [Mount("data", "s3://bucket/tree"), Mount("disk", "/srv/sets"), Mount("web", "http://h/x")]
)
# "#" is not here: whatever follows it is not sent at all
names = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="#"), min_size=1, max_size=20
)


def digest(url: str) -> str:
    return sha256(url.encode()).hexdigest()


def sent(url: str, params: dict[str, object] | None = None) -> str:
    """The query that `requests` puts on the wire."""
    prepared = requests.Request("GET", url, params=params).prepare()
    assert prepared.url is not None
    return urlsplit(prepared.url).query


@given(names)
def test_a_pasted_path_is_read_as_it_was_meant(name: str) -> None:
    url = f"s3://bucket/tree/{name}"
    raw, values = split_path(
        sent(f"http://h/v1/range/x?ufsFullPath={url}&offset=7&length=9"), "ufsFullPath", ("offset", "length")
    )
    assert raw is not None
    assume("%" not in name)  # escapes: the tests below
    assert values == {"offset": "7", "length": "9"}
    assert UfsNames(lambda: MOUNTS).resolve(digest(url), raw) == url


@pytest.mark.parametrize(
    "name",
    [
        "100%.txt",
        "a%20b",
        "50%25",
        "a b",
        "a+b",
        "a&b=c&d",
        "a&offset=1&x",
        "中文 文件.txt",
        "a?b",
        "%",
        "a%2Fb",
        "%zz",
    ],
)
def test_names_that_look_like_escapes(name: str) -> None:
    url = f"s3://bucket/tree/{name}"
    query = sent(f"http://h/v1/range/x?ufsFullPath={url}&offset=7&length=9")
    raw, values = split_path(query, "ufsFullPath", ("offset", "length"))
    assert UfsNames(lambda: MOUNTS).resolve(digest(url), raw) == url
    assert values == {"offset": "7", "length": "9"}


def test_an_escape_beside_a_space_is_known_by_its_id_after_info() -> None:
    url = "s3://bucket/tree/a%20b c"
    raw, _ = split_path(
        sent(f"http://h/v1/chunk/x?ufsFullPath={url}&chunkSize=1"), "ufsFullPath", ("chunkSize",)
    )
    known = UfsNames(lambda: MOUNTS)
    with pytest.raises(ValueError, match="is not the one"):
        known.resolve(digest(url), raw)
    known.remember(url)
    assert known.resolve(digest(url), raw) == url


def test_a_path_cut_at_a_fragment_is_refused_rather_than_another_file() -> None:
    url = "s3://bucket/tree/a#b"
    raw, values = split_path(
        sent(f"http://h/v1/range/x?ufsFullPath={url}&offset=0&length=9"), "ufsFullPath", ()
    )
    assert (raw, values) == ("s3://bucket/tree/a", {})
    known = UfsNames(lambda: MOUNTS)
    with pytest.raises(ValueError, match="cut at a '#'"):
        known.resolve(digest(url), raw)
    known.remember(url)
    assert known.resolve(digest(url), raw) == url


def test_path_after_its_arguments_and_beside_appended_ones() -> None:
    page = "offset=3&length=4&ufsFullPath=s3://b/a&b=c"
    assert split_path(page, "ufsFullPath", ("offset", "length")) == (
        "s3://b/a&b=c",
        {"offset": "3", "length": "4"},
    )
    rm = sent("http://h/v1/rm/x?ufsFullPath=s3://b/a&b", {"recursive": True, "recursiveAlias": False})
    assert split_path(rm, "ufsFullPath", ("recursive", "recursiveAlias")) == (
        "s3://b/a&b",
        {"recursive": "True", "recursiveAlias": "False"},
    )
    assert split_path("offset=1", "ufsFullPath", ()) == (None, {"offset": "1"})


def test_two_paths_with_every_way_to_read_them() -> None:
    query = "srcPath=s3://b/x&dstPath=y&dstPath=s3://b/z&recursive=True"
    ways, values = split_two_paths(query, "srcPath", "dstPath", ("recursive",))
    assert ways == [("s3://b/x", "y&dstPath=s3://b/z"), ("s3://b/x&dstPath=y", "s3://b/z")]
    assert values == {"recursive": "True"}
    chosen = UfsNames(lambda: MOUNTS).choose(digest("s3://b/x&dstPath=y"), [source for source, _ in ways])
    assert ways[chosen][1] == "s3://b/z"


@given(st.dictionaries(st.sampled_from(["path", "opType", "verbose"]), names))
def test_encoded_arguments_are_decoded_as_forms(values: dict[str, str]) -> None:
    assert form_values(sent("http://h/v1/load", dict(values))) == values


@given(st.text())
def test_no_query_breaks_the_parser(text: str) -> None:
    raw, _ = split_path(text, "ufsFullPath", ("offset",))
    split_two_paths(text, "srcPath", "dstPath", ("recursive",))
    if raw is not None:
        assert list(spellings(raw))


def test_urls_become_kara_paths_by_mount_and_back() -> None:
    known = UfsNames(lambda: MOUNTS)
    for url, path in [
        ("s3://bucket/tree/a/b", "/data/a/b"),
        ("file:///srv/sets/x y", "/disk/x y"),
        ("http://h/x/a%20b", "/web/a b"),
    ]:
        assert known.kara_path(url) == path
        assert known.url(path) == url
    assert known.kara_path("s3a://bucket/tree/a/") == "/data/a"
    for outside in ("s3://bucket/trees", "s3://other/tree", "file:///etc/passwd"):
        with pytest.raises(UnknownMount):
            known.kara_path(outside)
    with pytest.raises(ValueError):
        known.kara_path("file:///srv/sets/../../etc/passwd")


def test_an_alluxio_path_stands_in_a_request_line() -> None:
    assert quoted_path("/data/a b#c?d%e+f&g中") == "/data/a%20b%23c%3Fd%25e+f&g%E4%B8%AD"


def test_ids_that_are_no_sha256_say_nothing() -> None:
    assert UfsNames(lambda: MOUNTS).resolve("d41d8cd98f", "s3://b/a%20b") == "s3://b/a b"
    with pytest.raises(ValueError, match="no path"):
        UfsNames(lambda: MOUNTS).resolve("a" * 64, None)
