"""Secrets by reference: found where they are, and in no text that this project writes."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path

import pytest

from kara_cache.errors import ConfigError
from kara_cache.secret_ref import (
    Secret,
    is_secret_key,
    refuse_literal_secrets,
    resolve_options,
    resolve_secret,
)

CANARY = "hunter2-canary"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", CANARY)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NO_SUCH", raising=False)


def test_the_three_forms(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"  {CANARY} \n")
    for reference in ("env:CANARY", f"file:{file}", f"file://{file}", CANARY):
        assert resolve_secret(reference).reveal() == CANARY


def test_no_text_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(CANARY)
    literal = Secret(CANARY)
    for secret in (literal, Secret("env:CANARY"), Secret(f"file:{file}")):
        assert CANARY not in f"{secret} {secret!r} {[secret]} {secret!s}"
    assert repr(literal) == "Secret(***)"
    assert repr(Secret("env:CANARY")) == "Secret(env:CANARY)"


def test_a_reference_is_read_anew_after_rotation(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old")
    secret = resolve_secret(f"file:{file}")
    file.write_text("new\n\nold\n")
    assert secret.reveal() == "new"
    assert secret.reveal_all() == ("new", "old")


def test_pickle_carries_the_reference_only() -> None:
    pickled = pickle.dumps(Secret("env:CANARY"))
    assert CANARY.encode() not in pickled
    assert pickle.loads(pickled) == Secret("env:CANARY")
    assert hash(Secret("env:CANARY")) == hash(Secret("env:CANARY")) != hash(Secret("env:OTHER"))


def test_unreadable_ones_name_the_place(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n \n")
    binary.write_bytes(CANARY.encode() + b"\xff")
    for reference, words in (
        ("env:NO_SUCH", "env:NO_SUCH"),
        ("env:EMPTY", "empty"),
        (f"file:{tmp_path}/none", "No such file"),
        (f"file:{tmp_path}", "directory"),
        (f"file:{empty}", "empty"),
        (f"file:{binary}", "UTF-8"),
        ("file:relative", "absolute"),
        ("", "empty"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            resolve_secret(reference)
        assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_options(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(CANARY)
    options = {
        "access_key_id": "env:CANARY",
        "access_key_secret": f"file:{file}",
        "region": "cn-x",
        "timeout": 5,
        "root": "file:///srv/data",
    }
    resolved = resolve_options(options)
    assert resolved == {**options, "access_key_id": CANARY, "access_key_secret": CANARY}
    assert options["access_key_id"] == "env:CANARY"


def test_an_unreadable_option_is_named() -> None:
    with pytest.raises(ConfigError, match="option password: secret env:NO_SUCH"):
        resolve_options({"password": "env:NO_SUCH"})


@pytest.mark.parametrize(
    "key", ["secret", "app_secret", "Password", "ACCESS_KEY", "sts-token", "credentials", "key"]
)
def test_a_literal_on_the_command_line_is_refused(key: str) -> None:
    assert is_secret_key(key)
    with pytest.raises(ConfigError, match=f"{key}=env:NAME") as caught:
        refuse_literal_secrets({key: CANARY}, "--mount-option")
    assert CANARY not in str(caught.value)
    refuse_literal_secrets({key: "env:CANARY"}, "--mount-option")
    refuse_literal_secrets({key: "file:/x"}, "--mount-option")


def test_other_options_may_stand_there() -> None:
    refuse_literal_secrets({"region": "cn-x", "timeout": 5, "endpoint": "http://h"}, "--mount-option")
