from __future__ import annotations

import pytest

from kara_cache.ufs.http_head import (
    ContentRange,
    condition,
    content_length,
    content_range,
    encoding,
    modified_at,
    retry_after_s,
    version_of,
)

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110's own example, 784111777 s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 10-19/100", ContentRange(10, 20, 100)),
        ("bytes  10-19/*", ContentRange(10, 20, None)),
        (" bytes 10-19/20 ", ContentRange(10, 20, 20)),
        ("bytes 10-19/19", None),
        ("bytes 19-10/100", None),
        ("bytes 10-/100", None),
        ("bytes -10/100", None),
        ("bytes */100", None),
        ("bytes 10-19", None),
        ("items 10-19/100", None),
        ("bytes ١-٢/100", None),
        ("", None),
    ],
)
def test_content_range(text: str, expected: ContentRange | None) -> None:
    assert content_range({"Content-Range": text}) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-Length": "12"}, 12),
        ({"Content-Length": "0"}, 0),
        ({"Content-Length": "-1"}, None),
        ({"Content-Length": "12, 12"}, None),
        ({"Content-Length": "²"}, None),
        ({"Content-Length": "12", "Transfer-Encoding": "chunked"}, None),
        ({}, None),
    ],
)
def test_content_length(headers: dict[str, str], expected: int | None) -> None:
    assert content_length(headers) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("", ""), ("identity", ""), ("GZIP", "gzip"), ("br, gzip", "br, gzip")]
)
def test_encoding(text: str, expected: str) -> None:
    assert encoding({"Content-Encoding": text}) == expected


def test_version_prefers_the_strong_etag() -> None:
    assert version_of({"ETag": '"x"', "Last-Modified": DATE}, 5) == '"x"'
    assert version_of({"ETag": '"x"'}, None) == '"x"'


def test_weaker_versions_have_the_size_in_them() -> None:
    weak = {"ETag": 'W/"x"', "Last-Modified": DATE}
    versions = {
        version_of(weak, 5),
        version_of(weak, 6),
        version_of({"ETag": 'W/"x"'}, 5),
        version_of({"Last-Modified": DATE}, 5),
    }
    assert len(versions) == 4
    assert "" not in versions


@pytest.mark.parametrize("headers", [{}, {"ETag": ""}, {"Last-Modified": " "}])
def test_nothing_to_pin_by(headers: dict[str, str]) -> None:
    assert version_of(headers, 5) == ""
    assert version_of({"ETag": 'W/"x"'}, None) == ""


def test_only_strong_etags_are_sent() -> None:
    assert condition('"x"') == {"If-Match": '"x"'}
    assert condition(version_of({"ETag": 'W/"x"'}, 5)) == {}
    assert condition(version_of({"Last-Modified": DATE}, 5)) == {}
    assert condition("") == {}


def test_modified_at() -> None:
    assert modified_at({"Last-Modified": DATE}) == 784111777
    assert modified_at({"Last-Modified": "yesterday"}) is None
    assert modified_at({}) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        (DATE, 77.0),
        ("-7", None),
        ("soon", None),
        ("", None),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
    ],
)
def test_retry_after(text: str, expected: float | None) -> None:
    assert retry_after_s({"Retry-After": text}, 784111700) == expected
