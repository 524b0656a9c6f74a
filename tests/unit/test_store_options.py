"""Storage options as people have them from fsspec's own classes, in the words of our stores."""

from __future__ import annotations

from typing import Any

import pytest

from kara_cache.store_options import store_options


@pytest.mark.parametrize(
    ("scheme", "given", "expected"),
    [
        ("s3", {"anon": True}, {"anonymous": True}),
        (
            "s3",
            {"key": "k", "secret": "s", "token": "t", "endpoint_url": "http://h:1"},
            {
                "access_key_id": "k",
                "secret_access_key": "s",
                "session_token": "t",
                "endpoint_url": "http://h:1",
            },
        ),
        (
            "s3",
            {
                "client_kwargs": {"endpoint_url": "http://h:1", "region_name": "r"},
                "config_kwargs": {"s3": {"addressing_style": "path"}, "read_timeout": 5},
            },
            {"endpoint_url": "http://h:1", "region": "r", "addressing_style": "path", "read_timeout_s": 5},
        ),
        ("s3", {"use_listings_cache": False, "default_block_size": 1, "key": None}, {}),
        ("s3", {"client_kwargs": {"typo": 1}}, {"client_kwargs.typo": 1}),
        ("s3", {"access_key_id": "k", "timeout_s": 5}, {"access_key_id": "k", "timeout_s": 5}),
        (
            "oss",
            {"key": "k", "secret": "s", "token": "t", "endpoint": "h"},
            {"access_key_id": "k", "access_key_secret": "s", "security_token": "t", "endpoint": "h"},
        ),
        (
            "https",
            {"client_kwargs": {"headers": {"A": "b"}}, "ssl": False, "block_size": 1},
            {"headers": {"A": "b"}, "verify": False},
        ),
        ("http", {"headers": {"A": "b"}}, {"headers": {"A": "b"}}),
        ("file", {"auto_mkdir": True}, {}),
        ("gs", {"token": "anon", "block_size": 1}, {"token": "anon", "block_size": 1}),
    ],
)
def test_names(scheme: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert store_options(scheme, given) == expected


def test_secrets_by_reference_are_read_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "value")
    assert store_options("s3", {"key": "k", "secret": "env:MY_SECRET"}) == {
        "access_key_id": "k",
        "secret_access_key": "value",
    }
