"""Spellings of a file: every one leads to the same name, and names lead back to urls."""

from __future__ import annotations

import pytest

from kara_cache.kara_url import NameSpace, rebase, root_of, strip_kara

KARA = NameSpace()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("kara://mount/a/b", "mount/a/b"),
        ("kara:///mount/a/b", "mount/a/b"),
        ("/mount/a/b", "mount/a/b"),
        ("mount/a/b/", "mount/a/b"),
        ("kara://", ""),
        ("kara:///", ""),
        ("/", ""),
        ("", ""),
        ("s3://bucket/a", "s3://bucket/a"),
        ("kara://s3://bucket/a", "s3://bucket/a"),
        ("kara::S3a://bucket/a/", "s3://bucket/a"),
        ("kara://mount/odd://name", "mount/odd://name"),
    ],
)
def test_names_of_mounts(spelling: str, name: str) -> None:
    assert KARA.name(spelling) == name
    assert KARA.name(name) == name
    assert KARA.name(KARA.unstrip(name)) == name


@pytest.mark.parametrize(
    ("scheme", "spelling", "name", "url"),
    [
        ("s3", "kara::s3://bucket/a", "bucket/a", "s3://bucket/a"),
        ("s3", "s3a://bucket/a/", "bucket/a", "s3://bucket/a"),
        ("s3", "kara://bucket/a", "bucket/a", "s3://bucket/a"),
        ("s3", "/bucket/a", "bucket/a", "s3://bucket/a"),
        ("s3a", "bucket", "bucket", "s3://bucket"),
        ("oss", "kara::oss://host.com/bucket/a", "/host.com/bucket/a", "oss://host.com/bucket/a"),
        ("oss", "bucket/a", "/bucket/a", "oss://bucket/a"),
        ("https", "kara::https://host/a?b=1", "https://host/a?b=1", "https://host/a?b=1"),
        ("https", "host/a", "https://host/a", "https://host/a"),
        ("https", "http://host/a", "http://host/a", "http://host/a"),
        ("file", "kara::file:///data/a", "/data/a", "file:///data/a"),
        ("local", "kara://data/a", "/data/a", "file:///data/a"),
        ("file", "file:///", "/", "file:///"),
        ("memory", "memory://a/b", "/a/b", "memory://a/b"),
    ],
)
def test_names_of_a_chained_store(scheme: str, spelling: str, name: str, url: str) -> None:
    names = NameSpace(scheme)
    assert names.name(spelling) == name
    assert names.name(name) == name
    assert names.url(name) == url
    assert names.unstrip(name) == f"kara::{url}"
    assert names.name(names.unstrip(name)) == name


def test_a_chained_store_refuses_urls_of_another() -> None:
    with pytest.raises(ValueError, match="made for s3:// urls"):
        NameSpace("s3").name("oss://bucket/a")


@pytest.mark.parametrize(
    ("scheme", "name", "parent"),
    [
        (None, "mount/a/b", "mount/a"),
        (None, "mount", ""),
        (None, "", ""),
        (None, "s3://bucket/a", "s3://bucket"),
        (None, "s3://bucket", "s3://bucket"),
        ("s3", "bucket/a", "bucket"),
        ("s3", "bucket", ""),
        ("oss", "/bucket/a", "/bucket"),
        ("oss", "/bucket", "/"),
        ("file", "/", "/"),
        ("https", "https://host/a/b", "https://host/a"),
        ("https", "https://host/a", "https://host"),
        ("https", "https://host", "https://host"),
    ],
)
def test_parents_end_at_the_root(scheme: str | None, name: str, parent: str) -> None:
    assert NameSpace(scheme).parent(name) == parent


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("s3://bucket/a/b", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("oss://bucket/a", "oss://bucket"),
        ("oss://oss-cn-hangzhou.aliyuncs.com/bucket/a", "oss://oss-cn-hangzhou.aliyuncs.com/bucket"),
        ("oss://127.0.0.1:8080/bucket/a", "oss://127.0.0.1:8080/bucket"),
        ("https://host:8443/a/b", "https://host:8443"),
        ("file:///data/a", "file:///"),
        ("memory://a/b", "memory://a"),
    ],
)
def test_the_root_of_a_url_is_what_is_mounted(url: str, root: str) -> None:
    assert root_of(url) == root


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "oss://oss-cn-hangzhou.aliyuncs.com", "not a url"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"no bucket|not a url"):
        root_of(url)


@pytest.mark.parametrize(
    ("path", "base", "name", "expected"),
    [
        ("/m/a/b", "/m/a", "bucket/a", "bucket/a/b"),
        ("/m/a", "/m/a", "bucket/a", "bucket/a"),
        ("/m", "/", "", "m"),
        ("/m/a", "/m", "m", "m/a"),
        ("/m/a", "/m", "/", "/a"),
        ("/m/a", "/m", "https://host", "https://host/a"),
    ],
)
def test_rebase_gives_listings_the_callers_spelling(path: str, base: str, name: str, expected: str) -> None:
    assert rebase(path, base, name) == expected


def test_a_bare_url_strips_to_nothing_so_that_fsspec_recognises_a_chain() -> None:
    assert strip_kara("kara://") == ""


def test_listings_of_a_web_server_are_urls_again() -> None:
    assert rebase("/web/a b/100%", "/web", "https://host") == "https://host/a%20b/100%25"
