"""What fsspec makes of chained urls, without anything to connect to."""

from __future__ import annotations

import pickle
from typing import Any

import fsspec
import pytest
from fsspec.core import get_fs_token_paths, url_to_fs

from kara_cache.errors import ConfigError
from kara_cache.filesystem import KaraFileSystem
from kara_cache.kara_tree import CHAINS

CLUSTER = {"worker_hosts": "127.0.0.1:1"}

pytestmark = pytest.mark.filterwarnings("ignore:Your installed version of s3fs is very old:UserWarning")
chained = pytest.mark.skipif(not CHAINS, reason="this fsspec knows no chains but its own")


@pytest.mark.parametrize(
    ("url", "scheme", "name", "again"),
    [
        ("kara::s3://bucket/a/b", "s3", "bucket/a/b", "kara::s3://bucket/a/b"),
        ("kara://::s3://bucket/a", "s3", "bucket/a", "kara::s3://bucket/a"),
        ("kara::oss://bucket/a", "oss", "/bucket/a", "kara::oss://bucket/a"),
        ("kara::oss://h.com/bucket/a", "oss", "/h.com/bucket/a", "kara::oss://h.com/bucket/a"),
        ("kara::https://host/a", "https", "https://host/a", "kara::https://host/a"),
        ("kara::file:///data/a", "file", "/data/a", "kara::file:///data/a"),
        ("kara::memory://a/b", "memory", "/a/b", "kara::memory://a/b"),
        ("kara://mount/a", None, "mount/a", "kara://mount/a"),
        ("kara:///mount/a", None, "mount/a", "kara://mount/a"),
        ("kara://s3://bucket/a", None, "s3://bucket/a", "kara::s3://bucket/a"),
    ],
)
def test_names_of_every_url_form(url: str, scheme: str | None, name: str, again: str) -> None:
    options: dict[str, Any] = {"kara": CLUSTER} if "::" in url else CLUSTER
    if "::" in url and not CHAINS:
        with pytest.raises(ConfigError, match=r"2025\.12"):
            url_to_fs(url, **options)
        return
    fs, path = url_to_fs(url, **options)
    assert isinstance(fs, KaraFileSystem)
    assert fs.storage_options.get("target_protocol") == scheme
    assert path == fs._strip_protocol(path) == fs._strip_protocol(url) == name
    assert fs.unstrip_protocol(path) == again
    assert fs._strip_protocol(again) == name


@chained
def test_options_of_the_store_arrive() -> None:
    fs, _ = url_to_fs("kara::s3://bucket/a", kara=dict(CLUSTER), s3={"anon": True})
    assert fs.storage_options == {**CLUSTER, "target_protocol": "s3", "target_options": {"anon": True}}
    assert pickle.loads(pickle.dumps(fs)) is fs


@chained
def test_all_files_of_a_store_have_one_instance() -> None:
    one, _, paths = get_fs_token_paths(
        ["kara::s3://bucket/a", "kara::s3://bucket/b"], storage_options={"kara": dict(CLUSTER)}
    )
    other, _ = url_to_fs("kara::s3://elsewhere/c", kara=dict(CLUSTER))
    assert one is other
    assert paths == ["bucket/a", "bucket/b"]


def test_options_of_stores_that_the_url_does_not_name() -> None:
    """datasets hands its own hub's options to every filesystem."""
    fs = fsspec.filesystem("kara", **CLUSTER, hf={"token": None}, s3={"anon": True})
    assert isinstance(fs, KaraFileSystem)
    with pytest.raises(ConfigError, match=r"'s4' .*unknown key"):
        fsspec.filesystem("kara", **CLUSTER, s4={"anon": True})


@chained
def test_secrets_are_not_shown() -> None:
    fs, _ = url_to_fs("kara::s3://b/a", kara={**CLUSTER, "token": "t0ken"}, s3={"secret": "s3cret"})
    assert "t0ken" not in repr(fs) + fs.fsid
    assert "s3cret" not in repr(fs) + fs.fsid


def test_oss_without_ossfs_is_only_a_spelling() -> None:
    from kara_cache.url_schemes import OssUrls

    assert OssUrls._strip_protocol(["oss://bucket/a/", "bucket/b"]) == ["/bucket/a", "/bucket/b"]
    with pytest.raises(ImportError, match="pip install ossfs"):
        OssUrls()
