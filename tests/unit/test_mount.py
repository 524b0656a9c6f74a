"""Paths, freshness and mounts: one spelling for a path, one mount for a URL, no secret in any text."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import ConfigError
from kara_cache.mount import (
    IMMUTABLE,
    MAX_PATH_BYTES,
    REVALIDATE,
    Freshness,
    Mount,
    MountTable,
    is_below,
    normalize_path,
    redact_url,
)

key_characters = st.characters(exclude_characters="/", exclude_categories=["Cc", "Cs"])
segments = st.text(key_characters, min_size=1, max_size=12).filter(lambda text: text not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts))


# -- paths ---------------------------------------------------------------------------------------------


@given(paths)
def test_legal_paths_stay_as_they_are(path: str) -> None:
    assert normalize_path(path) == path
    assert normalize_path(path + "/") == path


@given(st.text(st.sampled_from("/.a\0\n%é "), max_size=12))
def test_a_path_is_legal_or_refused_and_never_another(text: str) -> None:
    parts = text.removesuffix("/").split("/") if text != "/" else ["", "x"]
    legal = (
        parts[0] == ""
        and len(parts) > 1
        and not set(parts[1:]) & {"", ".", ".."}
        and not set(text) & {"\0", "\n"}
    )
    if legal:
        assert normalize_path(text) == (text.removesuffix("/") or "/")
    else:
        with pytest.raises(ValueError):
            normalize_path(text)


@pytest.mark.parametrize(
    "path",
    [
        "/m/a b",
        "/m/100%/a%2Fb",
        "/m/a+b#c?d&e=f",
        "/m/数据/é",
        "/m/é",
        "/m/...",
        "/m/.hidden",
        "/m/a..b",
        "/m/a\\b",
        "/",
        "/m",
        "/m/~",
        "/m/\u2028",
        "/m/" + "x" * (MAX_PATH_BYTES - 3),
    ],
)
def test_odd_but_legal(path: str) -> None:
    assert normalize_path(path) == path


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "absolute"),
        ("m/a", "absolute"),
        ("s3://b/k", "absolute"),
        ("//", "empty segment"),
        ("//m", "empty segment"),
        ("/m//a", "empty segment"),
        ("/m/a//", "empty segment"),
        ("/..", "'..'"),
        ("/m/..", "'..'"),
        ("/m/../n", "'..'"),
        ("/m/./a", "'.'"),
        ("/m/a/.", "'.'"),
        ("/m/a\0b", "control"),
        ("/m/a\nb", "control"),
        ("/m/a\n", "control"),
        ("/m/a\x7f", "control"),
        ("/m/a\x85", "control"),
        ("/m/\ud800", "UTF-8"),
        ("/m/" + "x" * MAX_PATH_BYTES, "4099 bytes"),
        ("/m/" + "é" * (MAX_PATH_BYTES // 2), "4099 bytes"),
    ],
)
def test_refused_with_the_reason(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        normalize_path(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("path", "prefix", "answer"),
    [
        ("/a/b", "/a", True),
        ("/a", "/a", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/a", "/", True),
        ("/", "/", True),
        ("/", "/a", False),
        ("/b/a", "/a", False),
    ],
)
def test_below(path: str, prefix: str, answer: bool) -> None:
    assert is_below(path, prefix) is answer


# -- freshness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["revalidate", "immutable", "max_age=60s", "max_age=0.5s"])
def test_freshness_reads_what_it_writes(text: str) -> None:
    assert str(Freshness.parse(text)) == text


def test_freshness_in_other_units() -> None:
    assert Freshness.parse("max_age=2h") == Freshness(7200)
    assert Freshness.parse("max_age=0") == REVALIDATE


@pytest.mark.parametrize("text", ["", "always", "max_age", "max_age=", "max_age=-1s", "max-age=60s", "60s"])
def test_no_freshness(text: str) -> None:
    with pytest.raises(ValueError):
        Freshness.parse(text)


def test_trust() -> None:
    assert not REVALIDATE.trusts(0)
    assert IMMUTABLE.trusts(1e12)
    assert Freshness(60).trusts(59.9)
    assert not Freshness(60).trusts(60)


# -- mounts --------------------------------------------------------------------------------------------


def test_repr_shows_names_of_options_and_no_values() -> None:
    mount = Mount("data", "oss://ep/b", {"access_key_secret": "hunter2", "region": "cn-x"}, ttl_s=5.0)
    assert repr(mount) == "<Mount /data = oss://ep/b, revalidate, options access_key_secret, region>"
    assert "hunter2" not in f"{mount} {MountTable([mount])!r}"
    assert pickle.loads(pickle.dumps(mount)) == mount


def test_a_mount_keeps_its_own_options() -> None:
    options = {"region": "a"}
    mount = Mount("m", "s3://b", options)
    options["region"] = "b"
    assert mount.options["region"] == "a"


@pytest.mark.parametrize("name", ["", "a/b", "a b", "..", ".", "ü", "a\n", "x" * 129])
def test_bad_names(name: str) -> None:
    with pytest.raises(ConfigError, match="mount name"):
        Mount(name, "s3://b")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("bucket/key", "want scheme"),
        ("://b", "want scheme"),
        ("s3://", "no host"),
        ("https:///x", "no host"),
        ("s3://b//x", "empty segment"),
        ("s3://b/../x", "'..'"),
        ("https://h/x?sig=1", "query"),
        ("https://h/a%2Fb", "encoded slash"),
        ("https://h/a%2e%2e/%2e%2e", "'..'"),
    ],
)
def test_bad_urls(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        Mount("m", url)


@pytest.mark.parametrize(
    "url", ["https://user:hunter2@host/x", "oss://AK:hunter2@ep/b", "s3://k:a@hunter2@b"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="password") as caught:
        Mount("m", url)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in redact_url(url)


def test_more_bad_mounts() -> None:
    with pytest.raises(ConfigError, match="replicas"):
        Mount("m", "s3://b", replicas=0)
    with pytest.raises(ConfigError, match="ttl_s"):
        Mount("m", "s3://b", ttl_s=0)


def test_name_equals_url() -> None:
    assert Mount.parse("data=s3://b/x=y") == Mount("data", "s3://b/x=y")
    with pytest.raises(ConfigError, match="NAME=URL"):
        Mount.parse("s3://b")
    assert [mount.name for mount in MountTable.parse(" b=s3://b  a=s3://a\n")] == ["a", "b"]


# -- the table -----------------------------------------------------------------------------------------

TABLE = MountTable(
    [
        Mount("data", "s3://bucket/data"),
        Mount("images", "s3://bucket/data/images"),
        Mount("all", "S3://Bucket"),
        Mount("web", "https://Host.example:443/files/with%20space/"),
        Mount("disk", "/srv/data"),
        Mount("oss", "oss://oss-cn-x.aliyuncs.com/b"),
        Mount("ram", "memory://"),
    ]
)


@pytest.mark.parametrize(
    ("path", "name", "relative"),
    [
        ("/data", "data", ""),
        ("/data/", "data", ""),
        ("/data/a/b", "data", "a/b"),
        ("/images/x y%", "images", "x y%"),
    ],
)
def test_resolve(path: str, name: str, relative: str) -> None:
    mount, rest = TABLE.resolve(path)
    assert (mount.name, rest) == (name, relative)


def test_unknown_mount_names_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"'dat'.*all, data, disk, images, oss, ram, web"):
        TABLE.resolve("/dat/a")
    with pytest.raises(FileNotFoundError, match="none"):
        MountTable().resolve("/x")


def test_the_root_is_no_file() -> None:
    with pytest.raises(IsADirectoryError, match="data"):
        TABLE.resolve("/")


@pytest.mark.parametrize("path", ["/data/../images/x", "/data//x", "data/x", "/data/\0"])
def test_resolve_takes_only_clean_paths(path: str) -> None:
    with pytest.raises(ValueError):
        TABLE.resolve(path)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("s3://bucket/data/a", "/data/a"),
        ("s3://bucket/data", "/data"),
        ("s3://bucket/data/", "/data"),
        ("S3://BUCKET/data/A", "/data/A"),
        ("s3a://bucket/data/a", "/data/a"),
        ("s3://bucket/data/images/a", "/images/a"),
        ("s3://bucket/data/imagesX/a", "/data/imagesX/a"),
        ("s3://bucket/database/a", "/all/database/a"),
        ("s3://bucket/Data/a", "/all/Data/a"),
        ("s3://bucket", "/all"),
        ("s3://bucket/data/a%2Fb+c#d?e", "/data/a%2Fb+c#d?e"),
        ("https://host.example/files/with%20space/a%25", "/web/a%"),
        ("HTTPS://HOST.example:443/files/with space/ü", "/web/ü"),
        ("file:///srv/data/x", "/disk/x"),
        ("local:///srv/data/x", "/disk/x"),
        ("/srv/data/x", "/disk/x"),
        ("oss://oss-cn-x.aliyuncs.com/b/k", "/oss/k"),
        ("memory://a/b", None),
        ("memory:///a/b", "/ram/a/b"),
    ],
)
def test_from_url(url: str, path: str | None) -> None:
    if path is None:
        with pytest.raises(ConfigError):
            TABLE.from_url(url)
    else:
        assert TABLE.from_url(url) == path


@pytest.mark.parametrize(
    "url",
    [
        "s3://other/data/a",
        "https://host.example/file",
        "https://host.example:444/files/with%20space/a",
        "/srv",
    ],
)
def test_uncovered_url_names_the_mounts(url: str) -> None:
    with pytest.raises(ConfigError, match=r"no mount covers .*data=s3://bucket/data"):
        TABLE.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/data/../../etc",
        "s3://bucket//data",
        "file:///srv/data/../x",
        "https://host.example/files/a?v=1",
        "https://host.example/files/with%20space/%2e%2e/x",
        "https://host.example/files/with%20space/a%2Fb",
        "https://host.example/files/with%20space/%ff",
        "nonsense",
        "s3:///x",
    ],
)
def test_urls_without_a_path(url: str) -> None:
    with pytest.raises(ValueError):
        TABLE.from_url(url)


def test_a_password_does_not_get_into_messages() -> None:
    for url in (
        "https://u:hunter2@nowhere/x",
        "https://u:hunter2@nowhere/x?y",
        "https://u:hunter2@nowhere/%2f",
    ):
        with pytest.raises(ValueError) as caught:
            TABLE.from_url(url)
        assert "hunter2" not in str(caught.value)


@given(paths)
def test_url_and_path_agree(path: str) -> None:
    url = f"s3://bucket/data{path}"
    mount, relative = TABLE.resolve(TABLE.from_url(url))
    assert f"{mount.url}/{relative}".removesuffix("/") == url


def test_hosts_of_other_stores_keep_their_case() -> None:
    table = MountTable([Mount("upper", "memory://A"), Mount("lower", "memory://a")])
    assert table.from_url("memory://A/x") == "/upper/x"
    assert table.from_url("memory://a/x") == "/lower/x"


def test_no_name_twice() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        MountTable([Mount("a", "s3://x"), Mount("a", "s3://y")])


def test_with_mount_leaves_the_table_as_it_was() -> None:
    grown = TABLE.with_mount(Mount("new", "s3://new"))
    assert (len(TABLE), len(grown)) == (7, 8)
    assert grown.get("new") == Mount("new", "s3://new")
    assert TABLE.get("new") is None
    assert MountTable(TABLE) == TABLE != grown
    with pytest.raises(ConfigError):
        grown.with_mount(Mount("new", "s3://newer"))
