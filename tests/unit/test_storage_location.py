"""Where a url leads, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kara_cache import KaraStorage
from kara_cache.errors import ConfigError, FormatError
from kara_cache.storage.cached_store import CachedStore
from kara_cache.storage.location import open_location
from kara_cache.storage.versions import Versions, publish_version, read_meta, read_versions, write_meta

OSS = "oss://oss-cn-beijing.aliyuncs.com/bucket"
KEYS = {"app_key": "k", "app_secret": "s"}


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///abs/db", "/abs/db"),
        ("file:///abs//db/", "/abs/db"),
        ("file://rel/db", "{cwd}/rel/db"),
        ("file://Rel", "{cwd}/Rel"),
        ("file://./x", "{cwd}/x"),
        ("file://../x", "{parent}/x"),
        ("file:rel/p", "{cwd}/rel/p"),
        ("file:///with space/%20/~", "/with space/%20/~"),
        ("file:///a?query#fragment", "/a"),
        ("file:///", "/"),
    ],
)
def test_files(url: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = open_location(url)
    wanted = path.format(cwd=tmp_path, parent=tmp_path.parent)
    assert str(location.local) == wanted
    assert KaraStorage(url).prefix == wanted.rstrip("/") + "/"
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(location)).local == location.local


@pytest.mark.parametrize(
    ("url", "options", "prefix"),
    [
        (OSS, KEYS, "/"),
        (f"{OSS}/a/b", KEYS, "a/b/"),
        (f"kara::{OSS}/a", {**KEYS, "kara": {"worker_hosts": "h:1"}}, "a/"),
        ("oss://127.0.0.1:1/bucket/p", {**KEYS, "use_ssl": False}, "p/"),
        ("s3://bucket/p", {"app_key": "k", "app_secret": "s"}, "/p/"),
        ("http://host/p/q?x", {"headers": {"a": "b"}}, "/p/q/"),
        ("https://host", {}, "/"),
        ("kara::file:///data", {}, "/data/"),
    ],
)
def test_stores(url: str, options: dict[str, Any], prefix: str) -> None:
    storage = KaraStorage(url, **options)
    copy = pickle.loads(pickle.dumps(storage))
    for each in (storage, copy):
        assert each.prefix == prefix
        assert each.location.local is None
        assert each.location.writable == (not url.startswith("http"))
        assert isinstance(each.location.store, CachedStore) == url.startswith("kara::")
        assert "'s'" not in repr(each) + each.location.url


@pytest.mark.parametrize(
    "url", ["ftp://x", "bucket/key", "kara::kara::file:///x", "kara::gs://b/k", "", "kara://x"]
)
def test_unknown_schemes(url: str) -> None:
    with pytest.raises(ValueError, match=r"Unknown scheme `.*known are file, http, https, oss, s3"):
        open_location(url)


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("file:///x", {"app_key": "k"}, "app_key.*known options: none"),
        (OSS, {"app_kex": 1}, "app_kex.*known options: .*app_key, app_secret"),
        (OSS, {"app_key": "k"}, "secret"),
        ("http://h/p", {"header": {}}, "header.*known options: .*headers"),
        (f"kara::{OSS}", {"app_kex": 1}, "app_kex.*known options"),
        ("kara::file:///x", {"kara": {"clusterr": 1}}, "did you mean 'cluster_name'"),
        ("file:///x", {"kara": {}}, "kara"),
    ],
)
def test_unknown_options(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        KaraStorage(url, **options)


@pytest.mark.parametrize("part", ["..", "a/../b", "/a", "a/", "a//b", ".", "a\0b"])
def test_parts_stay_inside(part: str) -> None:
    with pytest.raises(ValueError):
        open_location("file:///db").path("row", part)


def test_parts() -> None:
    location = open_location("file:///db")
    assert location.path("row", "a/b", 3, "v") == "db/row/a/b/3/v"
    assert location.path("row", "", "k") == "db/row/k"


def test_links_may_lead_out(tmp_path: Path) -> None:
    """People put segments on another disk."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "row").symlink_to(tmp_path / "elsewhere")
    storage = KaraStorage(f"file://{tmp_path}/db")
    with storage.open("ns", "k", "w", 1) as dataset:
        dataset.write({"a": 1})
    assert storage.open("ns", "k", version=1)[0] == {"a": 1}
    assert (tmp_path / "elsewhere" / "ns" / "k" / "meta.json").exists()


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    storage = KaraStorage(f"file://{tmp_path}/db")
    with pytest.raises(FileNotFoundError, match="Dataset not exists"):
        storage.get_row_meta("ns", "k")
    with pytest.raises(FileNotFoundError, match="Dataset not exists"):
        storage.get_object_meta("ns", "k")
    assert not (tmp_path / "db").exists()


def test_metas_as_they_are_given(tmp_path: Path) -> None:
    storage = KaraStorage(f"file://{tmp_path}")
    meta = {"latest": None, "versions": [], "api": 2, "note": "é"}
    storage.put_row_meta("ns", "k", meta)
    storage.put_object_meta("ns", "k", {"any": 1})
    assert storage.get_row_meta("ns", "k") == meta
    assert storage.get_object_meta("ns", "k") == {"any": 1}
    assert (tmp_path / "row/ns/k/meta.json").read_text() == json.dumps(meta)


def test_publishing_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    location = open_location(f"file://{tmp_path}")
    write_meta(location, "row", "ns", "k", {"latest": "1", "versions": ["1"], "api": 2, "owner": "me"})
    assert publish_version(location, "row", "ns", "k", "2") == Versions("2", ("1", "2"), (("owner", "me"),))
    assert read_meta(location, "row", "ns", "k")["owner"] == "me"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"latest": 1, "versions": []}', '{"latest": "1"}', '{"versions": [], "api": 3}'],
)
def test_a_damaged_meta_is_no_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "row" / "ns" / "k" / "meta.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    location = open_location(f"file://{tmp_path}")
    with pytest.raises(FormatError, match=r"meta\.json|ns/k"):
        read_versions(location, "row", "ns", "k")
    with pytest.raises(FormatError):
        publish_version(location, "row", "ns", "k", "1")
    assert path.read_text() == content


def test_the_name_is_light() -> None:
    code = """
import sys, kara_cache
light = set(sys.modules)
kara_cache.KaraStorage("file:///x")
heavy = {"numpy", "oss2", "boto3", "torch", "lmdb", "pandas"} & set(sys.modules)
assert not heavy, heavy
assert not any(name.startswith("kara_cache.") for name in light), light
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
