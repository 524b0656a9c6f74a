from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.endpoint import Endpoint, is_loopback
from kara_cache.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("node-1:28080", Endpoint("node-1", 28080)),
        (" node_1.example.org ", Endpoint("node_1.example.org", 2379)),
        ("10.0.0.1:1", Endpoint("10.0.0.1", 1)),
        ("[::1]", Endpoint("::1", 2379)),
        ("[fe80::1%eth0]:65535", Endpoint("fe80::1%eth0", 65535)),
    ],
)
def test_parse(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text, 2379) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:x",
        "a:-1",
        "a:1:2",
        "::1",
        "a b:1",
        "http://a:1",
        "[::1]x",
        "a:٣",
        "a/b:1",
        "a:" + "1" * 5000,
        "[]:1",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Endpoint.parse(text, 2379)


def test_a_port_is_wanted_where_there_is_no_default() -> None:
    with pytest.raises(ConfigError, match="port"):
        Endpoint.parse("host")


def test_a_url_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        Endpoint.parse("https://etcd:2379")


def test_lists_lose_repetitions_and_keep_order() -> None:
    assert Endpoint.parse_all(["b", "a:2379", "b:2379"], 2379) == (Endpoint("b", 2379), Endpoint("a", 2379))


@given(st.text(max_size=30))
def test_anything_else_is_a_config_error(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text, 1)
    except ConfigError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("*", False),
    ],
)
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer
