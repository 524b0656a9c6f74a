from __future__ import annotations

import base64
import json

import pytest

from kara_cache.errors import ConfigError
from kara_cache.membership.etcd_json import (
    Header,
    KeyEvent,
    KeyValue,
    Refused,
    Unreachable,
    decode_answer,
    decode_event,
    decode_header,
    decode_item,
    parse_endpoints,
    prefix_end,
)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize(
    ("hosts", "urls"),
    [
        ("a", ["http://a:2379"]),
        ("a, b:4001,", ["http://a:2379", "http://b:4001"]),
        (["https://a", "http://b:1/"], ["https://a:2379", "http://b:1"]),
        ("[::1],[fe80::2]:99", ["http://[::1]:2379", "http://[fe80::2]:99"]),
    ],
)
def test_endpoints(hosts: str | list[str], urls: list[str]) -> None:
    assert list(parse_endpoints(hosts)) == urls


def test_tls_and_port_fill_in_what_is_missing() -> None:
    assert parse_endpoints("a,b:1", port=7, tls=True) == ("https://a:7", "https://b:1")


@pytest.mark.parametrize(
    "wrong", ["", " , ", "a:x", "a:99999", "ftp://a", "http://a/v3", "http://", "a?b=c", ":1", "a b", "a\nb"]
)
def test_what_is_no_endpoint_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="etcd"):
        parse_endpoints(wrong)


def test_a_password_in_an_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_endpoints("http://root:s3cret@a:2379")
    assert "s3cret" not in str(refusal.value)


def test_zero_values_may_be_left_out() -> None:
    assert decode_item({"key": b64(b"k")}) == KeyValue("k", b"", 0, 0)
    assert decode_header({}) == Header(0, 0, 0)


def test_a_deletion_has_no_item() -> None:
    event = decode_event({"type": "DELETE", "kv": {"key": b64(b"k"), "mod_revision": "9"}})
    assert event == KeyEvent("k", 9, None)


def test_a_key_that_is_not_utf8_survives() -> None:
    item = decode_item({"key": b64(b"/x/\xff")})
    assert item.key.encode("utf-8", "surrogateescape") == b"/x/\xff"


def test_the_end_of_a_prefix() -> None:
    assert base64.b64decode(prefix_end("/a/")) == b"/a0"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (502, b"Bad Gateway"),
        (503, b'{"error":"etcdserver: no leader","code":14}'),
        (500, b'{"error":"?"}'),
        (200, b'{"error":{"grpc_code":14,"message":"transport is closing"}}'),
    ],
)
def test_these_ask_for_another_endpoint(status: int, body: bytes) -> None:
    with pytest.raises(Unreachable):
        decode_answer(status, body)


@pytest.mark.parametrize(
    ("status", "code", "message", "token_trouble"),
    [
        (401, 16, "etcdserver: invalid auth token", True),
        (400, 3, "etcdserver: user name is empty", True),
        (400, 3, "etcdserver: authentication failed, invalid user ID or password", False),
        (403, 7, "etcdserver: permission denied", False),
        (429, 8, "etcdserver: mvcc: database space exceeded", False),
    ],
)
def test_these_are_final(status: int, code: int, message: str, token_trouble: bool) -> None:
    body = json.dumps({"error": message, "message": message, "code": code}).encode()
    with pytest.raises(Refused, match=message) as refusal:
        decode_answer(status, body)
    assert refusal.value.token_trouble is token_trouble
