"""Layers of configuration: who wins, what values may look like, and what an error says."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import ConfigError
from kara_cache.layered import INLINE, from_mapping, keys, layered
from kara_cache.mount import REVALIDATE, Freshness
from kara_cache.secret_ref import Secret


@dataclass(frozen=True, slots=True)
class Tls:
    ca: str = ""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Disk:
    dirs: tuple[str, ...] = ()
    capacity_bytes: int = 10


@dataclass(frozen=True, slots=True)
class Example:
    name: str = "default"
    port: int = 1
    ratio: float = 0.5
    timeout_s: float = 60.0
    idle_s: float | None = None
    flag: bool = False
    hosts: tuple[str, ...] = ()
    secret: Secret | None = None
    freshness: Freshness = REVALIDATE
    options: Mapping[str, Any] = field(default_factory=dict)
    tls: Tls = Tls()
    disk: Disk = field(default_factory=Disk, metadata=INLINE)

    def __post_init__(self) -> None:
        if self.port == 666:
            raise ConfigError("port: not that one")


def load(
    toml: str | None = None, directory: Path | None = None, env: dict[str, str] | None = None, **given: Any
) -> Example:
    file = None
    if toml is not None:
        assert directory is not None
        file = directory / "kara.toml"
        file.write_text(toml)
    return layered(
        Example,
        file=file,
        section="example",
        other_sections=("other",),
        env=env or {},
        prefix="EX_",
        overrides=given,
    )


def test_defaults() -> None:
    assert load() == Example()


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    toml = """
        [example]
        name = "file"
        port = 2
        ratio = 0.25
        tls = {ca = "file", verify = false}
        [other]
        x = 1
    """
    config = load(
        toml, tmp_path, {"EX_PORT": "3", "EX_RATIO": "0.75", "EX_TLS_CA": "env"}, ratio=1.0, name=None
    )
    assert config == Example(name="file", port=3, ratio=1.0, tls=Tls("env", False))


def test_values_as_people_write_them(tmp_path: Path) -> None:
    toml = """
        [example]
        timeout_s = "2m"
        idle_s = 0.5
        hosts = ["a", "b:1"]
        secret = "env:X"
        freshness = "max_age=1h"
        capacity_bytes = "1_000 MiB"
        dirs = "/a, /b,"
        options = {key = "v", n = 1}
    """
    in_file = load(toml, tmp_path)
    in_env = load(
        env={
            "EX_TIMEOUT_S": "2m",
            "EX_IDLE_S": "500ms",
            "EX_HOSTS": "a,b:1",
            "EX_SECRET": "env:X",
            "EX_FRESHNESS": "max_age=1h",
            "EX_CAPACITY_BYTES": "1_000 MiB",
            "EX_DIRS": "/a,/b",
        },
        options={"key": "v", "n": 1},
    )
    assert in_file == in_env
    assert in_file == Example(
        timeout_s=120.0,
        idle_s=0.5,
        hosts=("a", "b:1"),
        secret=Secret("env:X"),
        freshness=Freshness(3600),
        options={"key": "v", "n": 1},
        disk=Disk(("/a", "/b"), 1000 << 20),
    )


def test_groups_by_flat_key_table_mapping_or_instance(tmp_path: Path) -> None:
    expected = Example(tls=Tls("x", False))
    assert load('[example]\ntls_ca = "x"\ntls_verify = false', tmp_path) == expected
    assert load('[example.tls]\nca = "x"\nverify = false', tmp_path) == expected
    assert load(tls={"ca": "x", "verify": False}) == expected
    assert load(tls=Tls("x", False)) == expected
    assert load(tls_ca="x", tls_verify=False) == expected
    assert load(env={"EX_TLS_CA": "x", "EX_TLS_VERIFY": "no"}) == expected
    assert load(secret=Secret("env:X"), freshness=Freshness(1)) == Example(
        secret=Secret("env:X"), freshness=Freshness(1)
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("Yes", True), ("ON", True), ("0", False), ("off", False)],
)
def test_booleans_in_the_environment(text: str, value: bool) -> None:
    assert load(env={"EX_FLAG": text}).flag is value


def test_keys_are_flat() -> None:
    assert keys(Example)[-5:] == ("options", "tls_ca", "tls_verify", "dirs", "capacity_bytes")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": "1"}, "port (argument): expected int, got '1'"),
        ({"port": True}, "port (argument): expected int, got True"),
        ({"flag": "yes"}, "flag (argument): expected bool, got 'yes'"),
        ({"hosts": [1]}, "hosts (argument): expected str"),
        ({"timeout_s": "soon"}, "timeout_s (argument): 'soon': want a number of seconds"),
        ({"capacity_bytes": -1}, "capacity_bytes (argument): size -1"),
        ({"freshness": "old"}, "freshness (argument): freshness 'old'"),
        ({"secret": 5}, "secret (argument): expected str, got a int"),
        ({"prot": 1}, "'prot' (argument): unknown key, did you mean 'port'?"),
        ({"zzz": 1}, "'zzz' (argument): unknown key; known: capacity_bytes, dirs"),
        ({"tls": {"cb": ""}}, "'tls_cb' (argument, tls): unknown key, did you mean 'tls_ca'?"),
        ({"tls": "x"}, "argument, tls: expected a table, got 'x'"),
        ({"disk": {"dirs": ()}}, "'disk' (argument): unknown key, did you mean 'dirs'?"),
        ({"port": 666}, "port: not that one"),
    ],
)
def test_errors_of_arguments(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(**given)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[example]\nport = 'x'", "port ([example] in "),
        ("[example]\nprot = 1", "'prot' ([example] in "),
        ("[exampel]\nport = 1", "unknown section, did you mean 'example'?"),
        ("example = 1", "expected a table, got 1"),
        ("[example\nport = 1", "line 1"),
        ("[example]\nport = 1\nport = 2", "overwrite"),
    ],
)
def test_errors_of_files(tmp_path: Path, toml: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load(toml, tmp_path)
    assert "kara.toml" in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: No such file"):
        layered(Example, file="/nowhere/no.toml", section="example", env={})


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"EX_PORT": "x"}, "port (environment EX_PORT): expected int, got 'x'"),
        ({"EX_FLAG": "maybe"}, "flag (environment EX_FLAG): expected true or false, got 'maybe'"),
        ({"EX_HOST": "a"}, "environment EX_HOST: unknown key, did you mean EX_HOSTS?"),
        ({"EX_TIMEOUT": "1"}, "environment EX_TIMEOUT: unknown key, did you mean EX_TIMEOUT_S?"),
    ],
)
def test_errors_of_the_environment(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load(env=env)


def test_variables_of_others_are_left_alone() -> None:
    others = {
        "EX_": "x",
        "EX_SOMETHING_ELSE": "x",
        "EX_PORT": "tcp://10.0.0.1:80",
        "EX_NAME": "",
        "PORT": "x",
        "ex_port": "x",
    }
    assert load(env=others) == Example()


@pytest.mark.parametrize(
    "options",
    [{"secret": ["hunter2"]}, {"secret": {"a": "hunter2"}}, {"tls": {"ca": 1}, "secret": "hunter2"}],
)
def test_a_secret_is_in_no_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**options)
    assert "hunter2" not in str(caught.value)


def test_one_table_alone() -> None:
    assert from_mapping(Tls, {"verify": False}, "here", ca="fixed") == Tls("fixed", False)
    with pytest.raises(ConfigError, match=re.escape("'ca' (here): unknown key")):
        from_mapping(Tls, {"ca": "x"}, "here", ca="fixed")


@given(st.dictionaries(st.sampled_from([f"EX_{key.upper()}" for key in keys(Example)]), st.text(max_size=8)))
def test_any_environment_is_a_configuration_or_an_error(env: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        load(env=env)
